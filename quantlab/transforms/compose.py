"""Series, parallel and labelled composition of quantizers of one tensor.

chain(a, b)            a, then b on what a made;
split(f, a, b)         W = A + B, a on A and b on B (two code planes);
label(f, a, b)         one code plane; a label says which grid an element uses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from quantlab.core import base, grids, qtensor, stored

Array = jax.Array
Quantizer = base.Quantizer
State = base.State

Splitter = Callable[[Array, grids.Raw], Sequence[tuple[Array, grids.Raw]]]
"""Decomposes values into parts, each of the same kind, that add up to them."""


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
    init=lambda q: State(),
    apply=lambda q, state, key=None: (function(qtensor.lift(q)), ()),
  )


def keep() -> Quantizer:
  """Leaves the tensor as it is: in a plan, any leaf of any type."""
  return _KEEP


_KEEP = Quantizer(
  init=lambda q: State(), apply=lambda q, state, key=None: (q, ())
)


def series(*quantizers: Quantizer) -> Quantizer:
  """`chain` for quantizers of one tensor."""

  def init(q):
    states = []
    for quantizer in quantizers:
      states.append(quantizer.init(q))
      # A later stage starts from the refined tensor. A random stage needs a
      # key even here; any will do, since only the structure is kept.
      q, _ = quantizer.apply(q, states[-1], jax.random.key(0))
    return gather(states)

  def apply(q, state, key=None):
    stats = []
    for quantizer, part, part_key in scatter(quantizers, state, key):
      q, part_stats = quantizer.apply(q, part, part_key)
      stats.append(part_stats)
    return q, tuple(stats)

  return Quantizer(init, apply)


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


def _parallel(
  divide: Callable[[Any], tuple[Any, Sequence[Any]]],
  join: Callable[[Any, list[Any]], Any],
  quantizers: Sequence[Quantizer],
) -> Quantizer:
  def init(q):
    _, parts = divide(q)
    pairs = zip(quantizers, parts, strict=True)
    return gather([quantizer.init(part) for quantizer, part in pairs])

  def apply(q, state, key=None):
    context, parts = divide(q)
    out, stats = [], []
    for part, (quantizer, part_state, part_key) in zip(
      parts, scatter(quantizers, state, key), strict=True
    ):
      done, part_stats = quantizer.apply(part, part_state, part_key)
      out.append(done)
      stats.append(part_stats)
    return join(context, out), tuple(stats)

  return Quantizer(init, apply)


def _lifted(quantizer: Quantizer) -> Quantizer:
  return Quantizer(
    init=lambda q: quantizer.init(qtensor.lift(q)),
    apply=lambda q, state, key=None: quantizer.apply(
      qtensor.lift(q), state, key
    ),
  )


def split(splitter: Splitter, *quantizers: Quantizer) -> Quantizer:
  """Quantizes the parts of a sum: `W = sum of parts`.

  Args:
    splitter: values to parts, such as `masks(labeler)`.
    *quantizers: one per part. `keep()` keeps a part exact.

  Returns:
    A quantizer whose result is a `Sum`.

  Example:
    >>> import jax.numpy as jnp
    >>> import quantlab as ql
    >>> q = ql.split(
    ...   ql.masks(ql.beyond(1.5)), ql.rtn(4, symmetric=True), ql.keep()
    ... )
    >>> w = jnp.array([[0.1, -0.2, 0.15, 9.0]]).T
    >>> [type(part).__name__ for part in ql.quantize(q, w).parts]
    ['QTensor', 'Sparse']
  """

  def divide(q):
    parts = splitter(*qtensor.values(q))
    return None, [qtensor.QTensor(x, raw, q.dtype) for x, raw in parts]

  return _lifted(
    _parallel(divide, lambda _, out: qtensor.Sum(tuple(out)), quantizers)
  )


def label(labeler: base.Labeler, *quantizers: Quantizer) -> Quantizer:
  """Quantizes the elements of each label with a grid of their own.

  All labels share one plane of codes, so an element costs the same bits
  wherever it falls, plus what the labels cost.

  Args:
    labeler: values to labels `0 .. len(quantizers) - 1`.
    *quantizers: one per label. The elements of a label above 0 count as
      outliers of both signs (`Raw.tails`).

  Returns:
    A quantizer whose grid is `Labelled`. Quantizers that make sums make a sum
    of labelled parts.

  Raises:
    ValueError: the quantizers' results differ in structure.
  """

  def divide(q):
    x, raw = qtensor.values(q)
    labels = labeler(x, raw.mask)
    plane = grids.plain(labels)
    parts = [
      qtensor.QTensor(x, grids.Raw(raw.mask & (plane == j), j > 0), q.dtype)
      for j in range(len(quantizers))
    ]
    return labels, parts

  return _lifted(_parallel(divide, merge, quantizers))


def merge(labels: Any, parts: list[Any]) -> Any:
  """Joins tensors of the same structure into one plane of codes."""
  first = parts[0]
  if len({jax.tree.structure(p, is_leaf=_is_qtensor) for p in parts}) > 1:
    kinds = [type(part).__name__ for part in parts]
    raise ValueError(f"labels cannot share a code plane: parts are {kinds}")
  if isinstance(first, qtensor.Sum):
    columns = zip(*(part.parts for part in parts), strict=True)
    return qtensor.Sum(tuple(merge(labels, list(c)) for c in columns))
  plane = grids.plain(labels)
  codes = grids.select(plane, [grids.plain(part.codes) for part in parts])
  raw = [isinstance(part.grid, grids.Raw) for part in parts]
  if all(raw):
    mask = grids.select(plane, [part.grid.mask for part in parts])
    return qtensor.QTensor(codes, grids.Raw(mask), first.dtype)
  if any(raw):
    raise ValueError("labels share one plane of codes: keep() cannot be on it")
  grid = grids.Labelled(labels, tuple(part.grid for part in parts))
  return qtensor.QTensor(codes, grid, first.dtype)


def _is_qtensor(x: Any) -> bool:
  return isinstance(x, (qtensor.QTensor, stored.Sparse))


def masks(labeler: base.Labeler, count: int = 2) -> Splitter:
  """A splitter that gives each label's elements to a part of their own.

  Args:
    labeler: values to labels `0 .. count - 1`.
    count: parts.
  """

  def splitter(x, raw):
    plane = grids.plain(labeler(x, raw.mask))
    return [
      (x, grids.Raw(raw.mask & (plane == j), raw.tails)) for j in range(count)
    ]

  return splitter


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
    return jax.vmap(quantizer.init)(qtensor.lower(q))

  def apply(q, state, key=None):
    x = qtensor.lower(q)
    if key is None:
      return jax.vmap(lambda x, s: quantizer.apply(x, s, None))(x, state)
    keys = jax.random.split(key, qtensor.lift(x).shape[0])
    return jax.vmap(quantizer.apply)(x, state, keys)

  return Quantizer(init, apply)
