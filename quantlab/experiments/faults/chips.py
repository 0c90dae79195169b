"""Bit errors in the style of profiled SRAM chips.

A chip is a fixed draw: which cells are weak, and how weak, is decided by its
seed, and a cell that fails at a rate fails at every higher one. Measured chips
differ from independent errors in two ways: errors gather in columns, and one
direction of a flip is more frequent than the other.

The memory is arrays of 512 x 64 bits. Bit i is in array `i // 32768`, row
`i // 64 % 512` and column `i % 64`. A tree lies in it from an offset on: leaf
after leaf in the order of `jax.tree.leaves`, elements in row-major order, each
from its lowest bit up; behind the last array comes the first again.

References:
  arXiv 2006.13977, the section on profiled chips: 32 arrays, columns, and more
  flips from 0 to 1. Reconstruction: all else, since the measurements are not
  public: the mapping, how many columns are weak, and every default here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import flips
from quantlab.experiments.faults import bit_errors

Array = jax.Array
PyTree = Any

ROWS, COLUMNS = 512, 64
"""Cells of an array."""


class Chip(NamedTuple):
  """How often which cell fails.

  Attributes:
    rate: probability that a bit is wrong, where as many 0 as 1 are stored; may
      be traced.
    weak: fraction of the columns, of all arrays, that are weak.
    gathered: fraction of the errors that the weak columns have.
    rising: fraction of the errors that read 1 where 0 is stored.
    arrays: of the memory.
  """

  rate: Any
  weak: float = 1.0
  gathered: float = 1.0
  rising: float = 0.5
  arrays: int = 32


def uniform(rate: Any, *, arrays: int = 32) -> Chip:
  """A chip whose cells all fail alike; like chip 1 of the paper.

  Args:
    rate: probability that a bit is wrong.
    arrays: of the memory.

  Raises:
    ValueError: `rate` is outside [0, 1].

  Example:
    >>> words = jnp.zeros(10_000, jnp.uint8)
    >>> bad = jax.jit(lambda words: damage(words, uniform(0.01), seed=0))(words)
    >>> int(jax.lax.population_count(bad).sum())
    803
  """
  return _checked(Chip(rate, arrays=arrays))


def columns(
  rate: Any,
  *,
  weak: float = 1 / 8,
  gathered: float = 0.9,
  rising: float = 0.8,
  arrays: int = 32,
) -> Chip:
  """A chip whose errors gather in columns; like chip 2 of the paper.

  Args:
    rate: probability that a bit is wrong, where as many 0 as 1 are stored.
    weak: fraction of the columns that are weak.
    gathered: fraction of the errors that they have.
    rising: fraction of the errors that read 1 where 0 is stored.
    arrays: of the memory.

  Raises:
    ValueError: a fraction is out of range, or `rate` is higher than the cells
      of weak columns can give.
  """
  return _checked(Chip(rate, weak, gathered, rising, arrays))


def damage(
  tree: PyTree,
  chip: Chip,
  seed: Any,
  *,
  offset: Any = 0,
  protect: Sequence[str] = (),
) -> PyTree:
  """The tree as it is read from the chip.

  Args:
    tree: of arrays of numbers and bools; quantized leaves may be in it.
    chip: see `uniform` and `columns`.
    seed: which chip of the kind.
    offset: the bit of the memory where the tree begins.
    protect: parts that lie in another memory, without errors; see `core.flips`.

  Returns:
    The tree with wrong bits.

  Raises:
    ValueError: a part is unknown.
  """
  rising, falling = _rates(chip)
  count = chip.arrays * ROWS * COLUMNS
  columns_key, cells_key = jax.random.split(jax.random.key(seed))
  # As many weak columns as asked for, so the mean rate is exact.
  place = jax.random.permutation(columns_key, chip.arrays * COLUMNS)
  weak = place < round(chip.weak * chip.arrays * COLUMNS)
  draws = jax.random.uniform(cells_key, (count,))
  leaves, structure = jax.tree.flatten(tree)
  out, start = [], offset
  for leaf, safe in zip(leaves, _safe(tree, protect), strict=True):
    if safe:
      out.append(leaf)
      continue
    words, width = _words(leaf)
    at = jnp.arange(words.size * width).reshape(words.size, width)
    at = (start + at) % count
    column = at // (ROWS * COLUMNS) * COLUMNS + at % COLUMNS
    place = jnp.arange(width, dtype=words.dtype).reshape(1, width)
    stored = (words.reshape(-1, 1) >> place) & 1
    fails = jnp.where(
      stored == 0,
      jnp.where(weak[column], rising[0], rising[1]),
      jnp.where(weak[column], falling[0], falling[1]),
    )
    wrong = (draws[at] < fails).astype(words.dtype) << place
    wrong = jnp.sum(wrong, axis=1, dtype=words.dtype).reshape(words.shape)
    out.append(_array(words ^ wrong, leaf))
    start = start + words.size * width
  return jax.tree.unflatten(structure, out)


def evaluate(
  predict: Callable[[PyTree], Array],
  params: PyTree,
  labels: Array | np.ndarray,
  rates: Sequence[float],
  *,
  kind: Callable[[Any], Chip] = columns,
  seed: int = 0,
  offsets: Sequence[int] = tuple(range(0, 32 * ROWS * COLUMNS, 131_072)),
  protect: Sequence[str] = (),
) -> bit_errors.Robustness:
  """Scores quantized params in one chip, laid out from several offsets.

  Args:
    predict: as in `bit_errors.evaluate`, like what follows.
    params: quantized.
    labels: `[N]`.
    rates: R of them.
    kind: from a rate to a chip.
    seed: which chip of the kind.
    offsets: P places where the params begin; by default 8 that are spread over
      32 arrays.
    protect: as in `damage`.

  Raises:
    ValueError: a rate is out of range.
  """
  for rate in rates:
    kind(rate)  # refuses what the cells cannot give

  def read(tree, rate, offset):
    return damage(tree, kind(rate), seed, offset=offset, protect=protect)

  clean, found = bit_errors.under(read, predict, params, rates, offsets)
  return bit_errors.robustness(clean, found, labels, rates)


def _rates(chip: Chip) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
  """Rates of cells that hold 0 and 1, in weak and in other columns."""
  by_column = [chip.rate * chip.gathered / chip.weak]
  rest = 1 - chip.weak
  by_column.append(chip.rate * (1 - chip.gathered) / rest if rest else 0.0)
  rising, falling = (
    tuple(2 * part * each for each in by_column)
    for part in (chip.rising, 1 - chip.rising)
  )
  return rising, falling


def _checked(chip: Chip) -> Chip:
  if not 0 < chip.weak <= 1 or not all(
    0 <= part <= 1 for part in (chip.gathered, chip.rising)
  ):
    raise ValueError(
      "weak is in (0, 1], gathered and rising are in [0, 1], got "
      f"{chip.weak=}, {chip.gathered=}, {chip.rising=}"
    )
  if not isinstance(chip.rate, jax.core.Tracer):
    highest = max(max(each) for each in _rates(chip))
    if not 0 <= chip.rate <= 1 or highest > 1:
      raise ValueError(
        f"a rate is in [0, 1] and so is that of every cell, got {chip.rate=} "
        f"with {highest:.6g} in the worst cells"
      )
  return chip


def _safe(tree: PyTree, protect: Sequence[str]) -> list[bool]:
  """Whether each array is of a protected part."""
  if unknown := sorted({*protect} - {*flips.PARTS}):
    raise ValueError(
      f"protect: unknown parts {unknown}; there are {flips.PARTS}"
    )
  leaves, structure = jax.tree.flatten(tree)
  empty = [jax.ShapeDtypeStruct((0,), leaf.dtype) for leaf in leaves]

  def only(i):
    alone = [*empty[:i], leaves[i], *empty[i + 1 :]]
    bits = flips.parts(jax.tree.unflatten(structure, alone))
    return any(bits[part] for part in protect)

  return [only(i) for i in range(len(leaves))]


def _words(leaf: Array) -> tuple[Array, int]:
  """An array as unsigned integers, and how many bits of each are stored."""
  if leaf.dtype == bool:
    return leaf.astype(jnp.uint8), 1
  width = leaf.dtype.itemsize * 8
  return jax.lax.bitcast_convert_type(leaf, f"uint{width}"), width


def _array(words: Array, like: Array) -> Array:
  if like.dtype == bool:
    return words.astype(bool)
  return jax.lax.bitcast_convert_type(words, like.dtype)
