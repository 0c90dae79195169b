"""Quantizers whose bits are learned, by a gate."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from quantlab.core import base, gates, qtensor
from quantlab.transforms import compose

Array = jax.Array


@base.interned
def gated(
  inner: Callable[[int], base.Quantizer],
  *,
  widths: tuple[int, ...] = gates.WIDTHS,
  full: base.Quantizer | None = None,
  shared: bool = False,
  each: bool = False,
  batch: bool = False,
) -> base.Quantizer:
  """A quantizer whose bits are learned, by a gate.

  Args:
    inner: from a number of bits to the quantizer with that many.
    widths: bits to choose from, ascending. One of 32 is no quantizer of
      `inner`, but `full`.
    full: of 32 bits; by default `keep()`.
    shared: the quantizers learn one state, whose numbers mean the same to all
      of them, such as the ends of a range.
    each: an element has a gate of its own. No packed form holds elements of
      several widths: what is stored of the tensor is floats.
    batch: the leading axis is one of examples, which a gate is not of: what
      matters is the mean over them.

  Returns:
    A quantizer whose `State.learned` is a `Gate`, open, and what the quantizers
    learn. `ql.quantize(..., state=state)` stores what its gate has chosen.

  Raises:
    ValueError: the widths do not ascend; or (when used) `shared` quantizers
      have states of different forms.

  Example:
    >>> import quantlab as ql
    >>> w = jax.random.normal(jax.random.key(0), (64, 8))
    >>> quantizer = ql.gated(ql.rtn, widths=(2, 4, 8))
    >>> state = quantizer.init(w)
    >>> gate, rest = state.learned
    >>> few = state._replace(learned=(gate.at(4), rest))
    >>> [ql.quantize(quantizer, w, state=s).codes.bits for s in (state, few)]
    [8, 4]

  References:
    arXiv 2409.20138. Reconstruction: the staircase, and gates of any quantizer.
  """
  if not widths or list(widths) != sorted({*widths}) or widths[0] < 1:
    raise ValueError(f"widths have to ascend from 1 on, got {widths=}")
  full = compose.keep() if full is None else full
  choices = [full if bits == 32 else inner(bits) for bits in widths]

  def init(q):
    x = qtensor.values(q)[0]
    shape = (1,) * x.ndim
    if each:
      shape = (1, *x.shape[1:]) if batch else x.shape
    states = [choice.init(x) for choice in choices]
    if shared:
      states = states[-1:]
    some = compose.gather(states)
    return base.State(
      (gates.Gate.open(shape, widths), some.learned), some.stats
    )

  def parts(x, learned, stats):
    """The state of each choice."""
    found = [base.State(*pair) for pair in zip(learned, stats, strict=True)]
    if not shared:
      return found
    leaves = jax.tree.leaves(found[0])
    states = []
    for choice in choices:
      form = jax.tree.structure(jax.eval_shape(choice.init, x))
      if form.num_leaves != len(leaves):
        raise ValueError(
          f"the quantizers of {widths=} cannot share a state: they learn "
          f"{form.num_leaves} and {len(leaves)} arrays"
        )
      states.append(jax.tree.unflatten(form, leaves))
    return states

  def apply(q, state, key=None):
    gate, learned = state.learned
    x, _ = qtensor.values(q)
    x = _felt(x, gate.slope, gate.size, batch)
    states = parts(x, learned, state.stats)

    def chosen(i, stats):
      """Values by a choice, and the statistics with its own moved."""
      part, moved = choices[i].apply(x, states[i], key)
      own = 0 if shared else i
      form = jax.tree.structure(stats[own])
      moved = jax.tree.unflatten(form, jax.tree.leaves(moved))
      values = qtensor.dequantize(part).astype(x.dtype)
      return values, (*stats[:own], moved, *stats[own + 1 :])

    pruned = jnp.zeros_like(x), state.stats
    if each:
      out, stats = pruned
      place = jnp.broadcast_to(gate.place, x.shape)
      for i in range(len(choices)):
        values, stats = chosen(i, stats)
        out = jnp.where(place == i + 1, values, out)
    else:
      ways = [functools.partial(chosen, i) for i in range(len(choices))]
      out, stats = jax.lax.switch(
        gate.place.reshape(()), [lambda stats: pruned, *ways], state.stats
      )
    return qtensor.lift(out.astype(qtensor.lift(q).dtype)), stats

  def settle(q, state):
    gate, learned = state.learned
    if each or not gate.place.any():  # floats; all 0 where it is pruned
      return quantizer, state
    i = int(gate.place.reshape(())) - 1
    return choices[i], parts(q, learned, state.stats)[i]

  quantizer = base.Quantizer(init, apply, settle)
  return quantizer


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _felt(x: Array, slope: Array, size: Array, batch: bool) -> Array:
  """`x`; backwards, `slope` and `size` get what tells how much it matters."""
  del slope, size, batch
  return x


def _felt_forward(x, slope, size, batch):
  del size
  return x, (_mean(x, slope.shape, batch, jnp.mean), slope)


def _felt_backward(batch, kept, gradient):
  size, like = kept
  # The loss is a mean over the batch, so the sum is the mean per example.
  slope = _mean(gradient, like.shape, batch, jnp.sum)
  return gradient, slope.astype(like.dtype), size.astype(like.dtype)


def _mean(x, shape, batch, over_batch):
  """The mean magnitude for each gate."""
  if batch:
    x = over_batch(x, axis=0, keepdims=True)
  x = jnp.abs(x)
  axes = tuple(i for i, n in enumerate(shape) if n == 1)
  return jnp.mean(x, axis=axes, keepdims=True) if axes else x


_felt.defvjp(_felt_forward, _felt_backward)
