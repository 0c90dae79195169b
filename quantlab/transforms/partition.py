"""Partitions of one tensor: parts, labels and exceptions.

split(f, a, b)         W = A + B, a on A and b on B (two code planes);
label(f, a, b)         one code plane; a label says which grid an element uses;
exact(f, a)            W = A + E, a on A, E kept where f says so.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, grids, numerics, qtensor, sparse, stored
from quantlab.transforms import compose

Array = jax.Array
Quantizer = base.Quantizer

Splitter = Callable[[Array, grids.Raw], Sequence[tuple[Array, grids.Raw]]]
"""Decomposes values into parts, each of the same kind, that add up to them."""


def _parallel(
  divide: Callable[[Any], tuple[Any, Sequence[Any]]],
  join: Callable[[Any, list[Any]], Any],
  quantizers: Sequence[Quantizer],
) -> Quantizer:
  def init(q):
    _, parts = divide(q)
    pairs = zip(quantizers, parts, strict=True)
    return compose.gather([quantizer.init(part) for quantizer, part in pairs])

  def apply(q, state, key=None):
    context, parts = divide(q)
    out, stats = [], []
    for part, (quantizer, part_state, part_key) in zip(
      parts, compose.scatter(quantizers, state, key), strict=True
    ):
      done, part_stats = quantizer.apply(part, part_state, part_key)
      out.append(done)
      stats.append(part_stats)
    return join(context, out), tuple(stats)

  return Quantizer(compose.stateless(quantizers) or init, apply)


@base.interned
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

  return compose.lifted(
    _parallel(divide, lambda _, out: qtensor.Sum(tuple(out)), quantizers)
  )


@base.interned
def label(labeler: base.Labeler, *quantizers: Quantizer) -> Quantizer:
  """Quantizes the elements of each label with a grid of their own.

  All labels share one plane of codes, so an element costs the same bits
  wherever it falls, plus what the labels cost.

  Args:
    labeler: values to labels `0 .. len(quantizers) - 1`.
    *quantizers: one per label.

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
      qtensor.QTensor(x, _masked(raw, plane == j), q.dtype)
      for j in range(len(quantizers))
    ]
    return labels, parts

  return compose.lifted(_parallel(divide, merge, quantizers))


def merge(labels: Any, parts: list[Any]) -> Any:
  """Joins tensors of the same structure into one plane of codes."""
  first = parts[0]
  if len({jax.tree.structure(p, is_leaf=_is_qtensor) for p in parts}) > 1:
    kinds = [type(part).__name__ for part in parts]
    raise ValueError(f"labels cannot share a code plane: parts are {kinds}")
  if isinstance(first, qtensor.Sum):
    columns = zip(*(part.parts for part in parts), strict=True)
    return qtensor.Sum(tuple(merge(labels, list(c)) for c in columns))
  if isinstance(first, qtensor.Window):
    raise ValueError(
      f"labels are of the whole tensor, but a part of it stores only a window "
      f"of {first.part.shape} in {first.shape}: put the labels inside that part"
    )
  plane = grids.plain(labels)
  codes = grids.select(plane, [grids.plain(part.codes) for part in parts])
  raw = [isinstance(part.grid, grids.Raw) for part in parts]
  if all(raw):
    mask = grids.select(plane, [part.grid.mask for part in parts])
    return qtensor.QTensor(codes, grids.Raw(mask), first.dtype)
  if any(raw):
    raise ValueError("labels share one plane of codes: keep() cannot be on it")
  grid = _merged(labels, [part.grid for part in parts])
  return qtensor.QTensor(codes, grid, first.dtype)


def _merged(labels: Any, parts: list[Any]) -> grids.Labelled:
  """The grid of labelled parts; labels within them share one plane too."""
  if not all(isinstance(grid, grids.Labelled) for grid in parts):
    return grids.Labelled(labels, tuple(parts))
  inner = [grid.labels for grid in parts]
  if not all(isinstance(plane, jax.Array) for plane in inner):
    kinds = [type(plane).__name__ for plane in inner]
    raise ValueError(
      f"positions that are coded row by row ({kinds}) cannot be inside other "
      "labels: every row would mark another number of elements"
    )
  count = len(parts[0].grids)
  pair = stored.Pair(labels, grids.select(grids.plain(labels), inner), count)
  return grids.Labelled(pair, tuple(g for grid in parts for g in grid.grids))


def _is_qtensor(x: Any) -> bool:
  return isinstance(x, (qtensor.QTensor, sparse.Sparse))


@base.interned
def masks(labeler: base.Labeler, count: int = 2) -> Splitter:
  """A splitter that gives each label's elements to a part of their own.

  The others are no part of it: its grid need not cover them.

  Args:
    labeler: values to labels `0 .. count - 1`.
    count: parts.
  """

  def splitter(x, raw):
    plane = grids.plain(labeler(x, raw.mask))
    return [(x, _masked(raw, plane == j)) for j in range(count)]

  return splitter


@base.interned
def branches(labeler: base.Labeler, count: int = 2) -> Splitter:
  """A splitter like `masks` whose parts are whole tensors, with zeros.

  Each part looks like a layer of its own to its quantizer, and its zeros are
  rounded like any value.

  Args:
    labeler: values to labels `0 .. count - 1`.
    count: parts.
  """

  def splitter(x, raw):
    plane = grids.plain(labeler(x, raw.mask))
    return [(jnp.where(plane == j, x, 0), raw) for j in range(count)]

  return splitter


@base.interned
def exact(labeler: base.Labeler, inner: Quantizer) -> Quantizer:
  """Keeps the elements of label 1 exact and quantizes the others.

  Args:
    labeler: values to labels 0 and 1.
    inner: of the elements of label 0.

  Returns:
    A quantizer whose result is a `Sum` of that of `inner` and an exact part.
    With a grid that has a level at 0 the exact part holds the very values,
    otherwise what is missing to them.
  """

  def divide(q):
    x, raw = qtensor.values(q)
    far = grids.plain(labeler(x, raw.mask)) == 1
    return x, raw, far, qtensor.QTensor(x, _masked(raw, ~far), q.dtype)

  def apply(q, state, key=None):
    x, raw, far, part = divide(q)
    part, stats = inner.apply(part, state, key)
    rest = x - numerics.uncontracted(part.dequantize().astype(x.dtype))
    rest = qtensor.QTensor(rest, _masked(raw, far), q.dtype)
    return qtensor.Sum((part, rest)), stats

  init = compose.init_of(inner, lambda q: divide(q)[-1])
  return compose.lifted(Quantizer(init, apply))


def _masked(raw: grids.Raw, inside: Array) -> grids.Raw:
  return dataclasses.replace(raw, mask=raw.mask & inside)
