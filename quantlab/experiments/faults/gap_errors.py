"""Bit errors in the gap code: how far one reaches, and what would stop it.

Gaps add up, so one wrong symbol moves every later mark of its stream: of its
row, and, where a mark is lost or gained, of all rows behind it. Two remedies
are simulated: streams of fewer rows, where a row that ends its stream ends the
damage, and symbols that are stored several times and read by majority.

Shape letters: S streams, T symbols of a stream, N samples.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import flips, gaps, qtensor, sparse
from quantlab.experiments.faults import bit_errors

Array = jax.Array
PyTree = Any


class Streams(NamedTuple):
  """The symbols of a label plane, in streams of any number of rows.

  Attributes:
    symbols: `[S, T]` uint8; flags fill the end of short streams.
    used: `[S]`, symbols of each without that end.
    labels: what they are of.
  """

  symbols: np.ndarray
  used: np.ndarray
  labels: sparse.GapCoded

  @property
  def nbits(self) -> int:
    """Stored bits."""
    return self.symbols.size * self.labels.bits


class Reach(NamedTuple):
  """What one wrong bit of a symbol does, over samples.

  Attributes:
    weights: `[N]`, weights whose label changes.
    rows: `[N]`, rows that hold one of them.
  """

  weights: np.ndarray
  rows: np.ndarray


def streams(labels: sparse.GapCoded, rows: int) -> Streams:
  """Encodes the labels of a matrix anew.

  Args:
    labels: of a kernel `[K, N]`, stored.
    rows: of a stream, where they divide the rows; else all share one.

  Raises:
    ValueError: `rows` is below 1.

  Example:
    >>> marks = sparse.Marks(jnp.array([[3, 9]] * 128), (-2,), (16,))
    >>> labels = sparse.GapCoded.encode(marks, 4)
    >>> [streams(labels, rows).symbols.shape for rows in (128, 1)]
    [(1, 256), (128, 2)]
  """
  if rows < 1:
    raise ValueError(f"a stream has at least one row, got {rows=}")
  total = math.prod(labels.outer)
  coded = labels.symbols.unpack()
  positions = gaps.decode(
    coded, total // coded.shape[-2], labels.marks, labels.bits
  )
  rows = rows if total % rows == 0 else total
  positions = positions.reshape(-1, rows, labels.marks)
  dim = math.prod(labels.dims)
  symbols = np.asarray(gaps.encode(positions, dim, labels.bits))
  # A stream ends with its last mark.
  used = symbols.shape[1] - np.argmax(symbols[:, ::-1] > 0, axis=1)
  return Streams(symbols[:, : used.max(initial=0)], used, labels)


def plane(coded: Streams, symbols: Array) -> Array:
  """The bool plane of symbols, damaged or not.

  Args:
    coded: what they are the symbols of.
    symbols: `[S, T]` uint8.
  """
  labels, dim = coded.labels, math.prod(coded.labels.dims)
  rows = math.prod(labels.outer) // symbols.shape[0]
  positions = gaps.decode(symbols, rows, labels.marks, labels.bits)
  positions = positions.reshape(*labels.outer, labels.marks)
  positions = jax.lax.cond(
    labels.shuffled,
    lambda at: gaps.unshuffle(at, dim),
    lambda at: at,
    positions,
  )
  return sparse.Marks(positions, labels.axes, labels.dims).unpack()


def reach(coded: Streams, *, samples: int = 200, seed: int = 0) -> Reach:
  """Flips one bit of one symbol, at random places.

  Args:
    coded: the streams.
    samples: N.
    seed: of the places.
  """
  rng = np.random.default_rng(seed)
  # Each stored symbol is hit as often as any other.
  stream = rng.choice(len(coded.used), samples, p=coded.used / coded.used.sum())
  symbol = rng.integers(coded.used[stream])
  bit = (1 << rng.integers(coded.labels.bits, size=samples)).astype(np.uint8)
  axes = coded.labels.axes

  @jax.jit
  def run(symbols, stream, symbol, bit):
    clean = plane(coded, symbols)

    def each(place):
      s, t, b = place
      changed = clean != plane(coded, symbols.at[s, t].set(symbols[s, t] ^ b))
      return jnp.sum(changed), jnp.sum(jnp.any(changed, axis=axes))

    return jax.lax.map(each, (stream, symbol, bit))

  return Reach(*map(np.asarray, run(coded.symbols, stream, symbol, bit)))


def mean_reach(coded: Sequence[Streams], *, samples: int) -> dict[str, float]:
  """What one wrong bit anywhere in the streams of several leaves does.

  Args:
    coded: the streams of each leaf.
    samples: wrong bits per leaf.

  Returns:
    `weights_per_bit` and `rows_per_bit`, means, and `most`, the most weights.
  """
  found = [reach(each, samples=samples) for each in coded]
  # A wrong bit is in a leaf as often as the leaf has bits.
  sizes = [each.nbits for each in coded]
  means = {
    f"{what}_per_bit": float(
      np.average([getattr(each, what).mean() for each in found], weights=sizes)
    )
    for what in Reach._fields
  }
  return {**means, "most": max(int(each.weights.max()) for each in found)}


def damage(params: PyTree, rows: int, copies: int = 1) -> bit_errors.Damage:
  """Bit errors in the gap symbols alone, of streams as they might be stored.

  Args:
    params: quantized; leaves whose labels are gap-coded are hit.
    rows: of a stream.
    copies: of each symbol, read by majority; odd.

  Returns:
    What `bit_errors.under` takes. Labels come out as planes.

  Raises:
    ValueError: `copies` is even.
  """
  if copies < 1 or copies % 2 == 0:
    raise ValueError(f"a majority needs an odd number, got {copies=}")
  coded = restreamed(params, rows)

  def wrong(symbols, rate, key, bits):
    shape = (copies, *symbols.shape)
    masks = flips.flips(key, shape, rate, bits=bits).astype(jnp.uint8)
    place = jnp.arange(bits, dtype=jnp.uint8).reshape(1, 1, bits)
    votes = masks[0][..., None] >> place & 1
    for mask in masks[1:]:
      votes += mask[..., None] >> place & 1
    most = (votes > copies // 2).astype(jnp.uint8) << place
    return symbols ^ jnp.sum(most, axis=-1, dtype=jnp.uint8)

  def apply(tree, rate, seed):
    leaves, structure = jax.tree.flatten(tree, is_leaf=qtensor.is_quantized)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    for i, each in coded.items():
      symbols = jnp.asarray(each.symbols)
      symbols = wrong(symbols, rate, keys[i], each.labels.bits)
      grid = dataclasses.replace(leaves[i].grid, labels=plane(each, symbols))
      leaves[i] = dataclasses.replace(leaves[i], grid=grid)
    return jax.tree.unflatten(structure, leaves)

  return apply


def restreamed(params: PyTree, rows: int) -> dict[int, Streams]:
  """Streams of the leaves whose labels are gap-coded, by number of the leaf."""
  leaves = jax.tree.leaves(params, is_leaf=qtensor.is_quantized)
  found = {
    i: getattr(getattr(leaf, "grid", None), "labels", None)
    for i, leaf in enumerate(leaves)
  }
  return {
    i: streams(labels, rows)
    for i, labels in found.items()
    if isinstance(labels, sparse.GapCoded)
  }
