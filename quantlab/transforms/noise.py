"""Noise stages: rounded codes that come back from a faulty memory."""

from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, flips, grids, qtensor, stored

Array = jax.Array
PyTree = Any


@base.interned
def bit_errors(rate: float) -> base.Quantizer:
  """Flips each bit of each code at random, after a rounding stage.

  Codes have the bits that `pack` stores: the distance from the smallest code
  in binary. For the full range of signed codes that is two's complement with
  the top bit inverted, of which a flip does the same harm. Ranges and labels
  have no errors. The gradient passes straight through, and is taken at the
  damaged values. Needs a key, whose errors are fixed: a new one for each step
  trains for no chip in particular.

  Args:
    rate: the probability of an error, in [0, 1].

  Returns:
    A quantizer.

  Raises:
    ValueError: the rate is outside [0, 1]; or, when applied, there is no key or
      the codes are packed already.

  Example:
    >>> import quantlab as ql
    >>> noisy = ql.chain(ql.rtn(8), bit_errors(0.01))
    >>> w = jnp.linspace(-1, 1, 1000).reshape(1000, 1)
    >>> q = ql.quantize(noisy, w, key=jax.random.key(0))
    >>> int((abs(q.dequantize() - w) > 0.004).sum())  # 77 are expected
    75

  References:
    arXiv 2006.13977.
  """
  flips.check(rate)

  def apply(q, state, key=None):
    if key is None:
      raise ValueError("a stage of bit errors needs a PRNG key, got key=None")
    return flip_codes(qtensor.lift(q), rate, key), ()

  return base.Quantizer(init=base.Stateless(), apply=apply)


def flip_codes(tree: PyTree, rate: Any, key: Array) -> PyTree:
  """`bit_errors` for all codes of a tree whose quantizers have been applied.

  Args:
    tree: what `apply` of a plan gives, not packed. Arrays, and parts that are
      kept exact, pass unchanged.
    rate: the probability of an error, in [0, 1]; a traced number too.
    key: of the errors.

  Returns:
    The tree with damaged codes.

  Raises:
    ValueError: the rate, as far as it is concrete, is outside [0, 1]; or codes
      are packed.
  """
  leaves, structure = jax.tree.flatten(tree, is_leaf=_has_codes)
  flipped = [
    _flipped(leaf, rate, jax.random.fold_in(key, i))
    if _has_codes(leaf)
    else leaf
    for i, leaf in enumerate(leaves)
  ]
  return jax.tree.unflatten(structure, flipped)


def _has_codes(x: Any) -> bool:
  return isinstance(x, qtensor.QTensor) and not isinstance(x.grid, grids.Raw)


def _flipped(q: qtensor.QTensor, rate: Any, key: Array) -> qtensor.QTensor:
  if isinstance(q.codes, stored.Packed):
    raise ValueError(
      f"codes of shape {q.shape} are packed: bit errors come before storage; "
      "flip_bits damages what is stored"
    )
  lo, hi = q.grid.bounds
  fixed = jax.lax.stop_gradient(q.codes)
  word = (fixed.astype(jnp.int32) - lo).astype(jnp.uint32)
  word ^= flips.flips(key, q.shape, rate, (hi - lo).bit_length())
  wrong = (word.astype(jnp.int32) + lo).astype(fixed.dtype)
  # The gradient is that of the codes, the values are those of the errors.
  return qtensor.QTensor(wrong + (q.codes - fixed), q.grid, q.dtype)
