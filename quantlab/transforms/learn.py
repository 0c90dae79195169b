"""Grid stages that an optimizer moves.

After the optimizer's step, `project` moves what has become invalid (a negative
step, a range without 0) to the nearest valid value.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, numerics, parameterization, qtensor
from quantlab.transforms import compose, estimate, fit

Array = jax.Array
PyTree = Any
Range = base.Range


@base.interned
def learned(
  kind: parameterization.Parameterization,
  spec: base.IntSpec,
  granularity: base.Granularity,
  *,
  start: base.Estimator = estimate.minmax,
  gradient_scale: Callable[[int, base.IntSpec], float] | None = None,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> base.Quantizer:
  """Gives the tensor a uniform grid that is learned.

  Args:
    kind: `step`, `scale_offset`, `scale_zero`, `min_max`, `beta_gamma`,
      `beta_gamma_sigmoid` or `bound`.
    spec: the codes. With `exact_zero` the zero point is rounded, and gradients
      pass straight through.
    granularity: tensor shape to grid shape.
    start: estimates the first range, of the tensor that `init` sees.
    gradient_scale: `(elements per cell, spec)` to the factor of the numbers'
      gradients; see `methods.lsq.balanced`.
    dtype: what the numbers are learned and stored in.

  Returns:
    A quantizer whose `State.learned` is a `Learned`; its codes are not yet
    rounded.

  Raises:
    ValueError: (when used) the elements are two tails, whose grid `fit` makes;
      or a step, which has no zero point, has a spec that is not symmetric.

  Example:
    >>> import quantlab as ql
    >>> q = ql.chain(
    ...   ql.learned(ql.min_max, ql.INT4, ql.per_tensor), ql.nearest()
    ... )
    >>> x = jnp.array([[-1.0, 0.2], [0.5, 2.0]])
    >>> state = q.init(x)
    >>> def loss(learned):
    ...   out, _ = q.apply(x, state._replace(learned=learned))
    ...   return jnp.sum((out.dequantize() - x) ** 2)
    >>> [a.shape for a in jax.tree.leaves(jax.grad(loss)(state.learned))]
    [(1, 1), (1, 1)]

  References:
    arXiv 2404.16898 compares the pairs; arXiv 2004.09576 is `scale_offset`.
    Gradients are derived from the forward pass, not the papers' tables.
  """
  if kind is parameterization.step and not spec.symmetric:
    raise ValueError(f"step has no zero point: it takes a symmetric {spec=}")

  def ends(estimator, q):
    """The range of each cell, without gradient."""
    x, raw = qtensor.values(q)
    if raw.tails:
      raise ValueError("learned: two tails have no range of their own; use fit")
    cells = granularity(x.shape)
    range_ = numerics.each_row(
      functools.partial(estimator, spec=spec),
      numerics.columns(jax.lax.stop_gradient(x), cells),
      numerics.columns(fit.weights(x, raw), cells),
    )
    return Range(*(end.astype(dtype) for end in range_))

  def init(q):
    extremes = functools.partial(ends, estimate.minmax, q)
    values = kind.start(ends(start, q), extremes, spec)
    return base.State(learned=parameterization.Learned(values, kind.name, spec))

  def apply(q, state, key=None):
    del key
    x, raw = qtensor.values(q)
    numbers = state.learned
    if gradient_scale is not None:
      count = x.size // math.prod(granularity(x.shape))
      factor = gradient_scale(count, spec)
      numbers = jax.tree.map(lambda a: _slowed(a, factor), numbers)
    grid = numbers.grid(functools.partial(ends, estimate.minmax, q))
    return qtensor.QTensor(grid.encode(raw.decode(x)), grid, q.dtype), ()

  return compose.lifted(base.Quantizer(init, apply))


def _slowed(x: Array, factor: float) -> Array:
  """The very same value, its gradient multiplied."""
  constant = jax.lax.stop_gradient(x)
  return constant + factor * (x - constant)


def project(tree: PyTree) -> PyTree:
  """Makes learned numbers valid, after an optimizer has moved them.

  Args:
    tree: any tree with `Learned` in it, such as `State.learned` of a plan.

  Returns:
    The tree, with steps of at least 1e-8; zero points among the codes; ranges
    that hold 0 and are at least 1e-5 wide; factors of at least 0.

  Example:
    >>> import quantlab as ql
    >>> ends = {"lo": jnp.array(0.1), "hi": jnp.array(0.3)}
    >>> project({"w": ql.Learned(ends, "min_max", ql.INT4)})["w"].values[
    ...   "lo"
    ... ].item()
    0.0
  """
  return jax.tree.map(
    lambda x: x.projected() if _is_learned(x) else x, tree, is_leaf=_is_learned
  )


def integer_zero(tree: PyTree) -> PyTree:
  """The same learned grids with integer zero points, as hardware wants them.

  The value of each level moves by up to half a step, so what is exported has to
  be evaluated as it is exported.

  Args:
    tree: any tree with `Learned` in it, such as `State.learned` of a plan.

  Returns:
    The tree.

  Example:
    >>> import quantlab as ql
    >>> x = jnp.linspace(-0.3, 4.0, 40)[:, None]
    >>> quantizer = ql.lsq_plus(4)
    >>> state = quantizer.init(x)
    >>> exact = state._replace(learned=integer_zero(state.learned))
    >>> q = ql.quantize(quantizer, x, state=exact)
    >>> q.grid.decode(q.grid.zero.astype(float)).item()
    0.0
  """

  def one(x):
    if not _is_learned(x) or x.spec.symmetric:
      return x
    spec = dataclasses.replace(x.spec, exact_zero=True)
    return dataclasses.replace(x, spec=spec)

  return jax.tree.map(one, tree, is_leaf=_is_learned)


def _is_learned(x: Any) -> bool:
  return isinstance(x, parameterization.Learned)
