"""Series of quantizers of one tensor, and what a quantizer is placed on."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax

from quantlab.core import base, qtensor

Array = jax.Array
Quantizer = base.Quantizer
State = base.State


def stage(function: Callable[[Any], Any]) -> Quantizer:
  """A quantizer without state or randomness from `f(q) -> q`.

  Example:
    >>> import jax.numpy as jnp
    >>> import quantlab as ql
    >>> halve = stage(lambda q: ql.lift(q.dequantize() / 2))
    >>> ql.quantize(halve, jnp.ones(2)).tolist()
    [0.5, 0.5]
  """
  return Quantizer(
    init=base.Stateless(),
    apply=lambda q, state, key=None: (function(qtensor.lift(q)), ()),
  )


def keep() -> Quantizer:
  """Leaves the tensor as it is: in a plan, any leaf of any type."""
  return _KEEP


_KEEP = Quantizer(
  init=base.Stateless(), apply=lambda q, state, key=None: (q, ())
)


@base.interned
def series(*quantizers: Quantizer) -> Quantizer:
  """`chain` for quantizers of one tensor."""
  count = len(quantizers)  # up to the last that may keep something
  while count and isinstance(quantizers[count - 1].init, base.Stateless):
    count -= 1

  def first(count, q):
    """The states of so many stages."""
    states = []
    for i, quantizer in enumerate(quantizers[:count]):
      states.append(quantizer.init(q))
      # A later stage starts from the refined tensor. A random stage needs a
      # key even here; any will do, since only the structure is kept.
      if i < count - 1:
        q, _ = quantizer.apply(q, states[-1], jax.random.key(0))
    return states

  def init(q):
    # Only what a stage keeps is computed, and what that starts from.
    shapes = jax.eval_shape(functools.partial(first, count), q)
    kept = [i for i, state in enumerate(shapes) if jax.tree.leaves(state)]
    known = max(kept, default=-1) + 1
    rest = [quantizer.init(q) for quantizer in quantizers[count:]]
    return gather([*first(known, q), *shapes[known:], *rest])

  def apply(q, state, key=None):
    stats = []
    for quantizer, part, part_key in scatter(quantizers, state, key):
      q, part_stats = quantizer.apply(q, part, part_key)
      stats.append(part_stats)
    return q, tuple(stats)

  def settle(q, state):
    parts, states = [], []
    for quantizer, part, key in scatter(quantizers, state, jax.random.key(0)):
      if quantizer.settle is not None:
        quantizer, part = quantizer.settle(q, part)
      parts.append(quantizer)
      states.append(part)
      q, _ = jax.eval_shape(quantizer.apply, q, part, key)
    return series(*parts), gather(states)

  settles = any(quantizer.settle is not None for quantizer in quantizers)
  return Quantizer(
    stateless(quantizers) or init, apply, settle if settles else None
  )


def stateless(quantizers: Sequence[Quantizer]) -> base.Stateless | None:
  """The `init` of parts of which none keeps anything."""
  states = []
  for quantizer in quantizers:
    if not isinstance(quantizer.init, base.Stateless):
      return None
    states.append(quantizer.init.state)
  return base.Stateless(gather(states))


def init_of(
  quantizer: Quantizer, part: Callable[[Any], Any]
) -> Callable[[Any], State]:
  """The `init` of a quantizer of a part, which is computed if it is needed."""
  if isinstance(quantizer.init, base.Stateless):
    return quantizer.init

  def init(q):
    shapes = jax.eval_shape(lambda q: quantizer.init(part(q)), q)
    return quantizer.init(part(q)) if jax.tree.leaves(shapes) else shapes

  return init


def gather(states: Sequence[State]) -> State:
  """One state from the states of parts."""
  return State(tuple(s.learned for s in states), tuple(s.stats for s in states))


def scatter(
  quantizers: Sequence[Quantizer], state: State, key: Array | None
) -> list[tuple[Quantizer, State, Array | None]]:
  """Each part with its state and its own key: the inverse of `gather`."""
  count = len(quantizers)
  keys = [None] * count if key is None else jax.random.split(key, count)
  return [
    (quantizer, State(learned, stats), part_key)
    for quantizer, learned, stats, part_key in zip(
      quantizers, state.learned, state.stats, keys, strict=True
    )
  ]


def lifted(quantizer: Quantizer) -> Quantizer:
  """The same for float arrays too, which count as trivial tensors."""
  return Quantizer(
    init=init_of(quantizer, qtensor.lift),
    apply=lambda q, state, key=None: quantizer.apply(
      qtensor.lift(q), state, key
    ),
  )


@base.interned
def window(
  place: Callable[[tuple[int, ...]], tuple[Any, Any]], quantizer: Quantizer
) -> Quantizer:
  """Quantizes and stores a window of a tensor that is 0 outside it.

  Args:
    place: shape to the window's start and its size along each axis.
    quantizer: of the window.
  """

  def cut(q):
    x, raw = qtensor.values(q)
    start, size = place(x.shape)

    def crop(a):
      return jax.lax.dynamic_slice(a, start, size) if a.ndim else a

    part = qtensor.QTensor(crop(x), jax.tree.map(crop, raw), q.dtype)
    return part, (tuple(start), x.shape)

  def apply(q, state, key=None):
    part, where = cut(q)
    part, stats = quantizer.apply(part, state, key)
    return qtensor.Window(part, *where), stats

  return lifted(Quantizer(init_of(quantizer, lambda q: cut(q)[0]), apply))


def by_shape(choose: Callable[[tuple[int, ...]], Quantizer]) -> Quantizer:
  """A quantizer that depends on the shape of the tensor.

  Args:
    choose: shape to quantizer.
  """
  return Quantizer(
    init=lambda q: choose(qtensor.lift(q).shape).init(q),
    apply=lambda q, state, key=None: choose(qtensor.lift(q).shape).apply(
      q, state, key
    ),
  )


@base.interned
def stacked(quantizer: Quantizer) -> Quantizer:
  """Quantizes each slice along the leading axis on its own, with `vmap`.

  Every stored array gains the leading axis, so `lax.scan` over layers can slice
  a quantized stack.

  Example:
    >>> import jax.numpy as jnp
    >>> import quantlab as ql
    >>> q = ql.quantize(ql.stacked(ql.rtn(4)), jnp.ones((3, 32, 8)))
    >>> q.grid.scale.shape, q.codes.words.shape
    ((3, 1, 8), (3, 4, 8))
  """

  def init(q):
    q = qtensor.lift(q)
    return jax.vmap(quantizer.init, in_axes=(_leading(q),))(q)

  def apply(q, state, key=None):
    q = qtensor.lift(q)
    keys = None if key is None else jax.random.split(key, q.shape[0])
    axes = (_leading(q), 0, None if key is None else 0)
    return jax.vmap(quantizer.apply, in_axes=axes)(q, state, keys)

  nothing = isinstance(quantizer.init, base.Stateless)
  return Quantizer(quantizer.init if nothing else init, apply)


def _leading(q: Any) -> Any:
  """The axis of each array to map over: scalars belong to every slice."""
  return jax.tree.map(lambda a: 0 if a.ndim else None, q)
