"""The gap code: positions of sparse elements as short symbols.

Each row holds the same number P of marked positions out of D. A gap
`G = i_j - i_{j-1}` (with `i_0 = -1`) is written in b-bit symbols, with
`M = 2**b - 1`:

  symbol 0        the flag: advance M, mark nothing;
  symbol r > 0    advance r, mark.

So `G` costs `(G - 1) // M` flags and one symbol. Rows follow each other in a
stream with no terminator: a row ends after its P-th mark. Padding with flags
decodes to nothing.

Shape letters: R rows of a stream, P marks per row, D elements per row,
S symbols.

References:
  ICQuant, arXiv 2505.00850, section on index coding. The flag's bit pattern and
  the streams over several rows are reconstruction.
"""

import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import numerics

Array = jax.Array


def capacity(dim: int, marks: int, bits: int) -> int:
  """The most symbols that one row can need.

  Example:
    >>> capacity(dim=4096, marks=1, bits=6)
    66
  """
  return marks + (dim - marks) // _reach(bits) if marks else 0


@functools.partial(jax.jit, static_argnames=("dim", "bits"))
def encode(positions: Array, dim: int, bits: int) -> Array:
  """Encodes rows of positions into one stream of symbols.

  Args:
    positions: `[..., R, P]` int, ascending within each row.
    dim: D.
    bits: b, 1 to 8.

  Returns:
    `[..., S]` uint8 with `S = R * capacity(D, P, bits)`; flags fill the end.

  Example:
    >>> encode(jnp.array([[0, 7, 14, 15, 29]]), dim=30, bits=3)[:6].tolist()
    [1, 7, 7, 1, 0, 7]
  """
  *batch, num_rows, marks = positions.shape
  reach = _reach(bits)
  size = num_rows * capacity(dim, marks, bits)
  gaps = jnp.diff(positions, axis=-1, prepend=-1)
  gaps = gaps.reshape(*batch, num_rows * marks)
  flags = (gaps - 1) // reach
  at = jnp.cumsum(flags + 1, axis=-1) - 1
  symbols = (gaps - flags * reach).astype(jnp.uint8)
  return numerics.scatter(at, symbols, size)


@functools.partial(jax.jit, static_argnames=("num_rows", "marks", "bits"))
def decode(symbols: Array, num_rows: int, marks: int, bits: int) -> Array:
  """Decodes a stream: the inverse of `encode`.

  Args:
    symbols: `[..., S]` uint8.
    num_rows: R.
    marks: P.
    bits: b.

  Returns:
    `[..., R, P]` int32 positions. Of a damaged stream some lie outside their
    row, below 0 or past its end.
  """
  batch = symbols.shape[:-1]
  if not marks:
    return jnp.zeros((*batch, num_rows, 0), jnp.int32)
  symbols = symbols.astype(jnp.int32)
  marked = symbols > 0
  steps = jnp.where(marked, symbols, _reach(bits))
  # One sum of both: a compiler makes fewer loops of it, or kernels.
  at, count = jnp.cumsum(jnp.stack([steps, marked.astype(jnp.int32)]), axis=-1)
  rank = jnp.where(marked, count - 1, num_rows * marks)
  found = numerics.scatter(rank, at, num_rows * marks)
  found = found.reshape(*batch, num_rows, marks)
  start = jnp.pad(found[..., :-1, -1], (*[(0, 0)] * len(batch), (1, 0)))
  return found - start[..., None] - 1


def expected_bits(ratio: float, bits: int, dim: int | None = None) -> float:
  """Expected cost of the gap code, in bits per element.

  Args:
    ratio: marked fraction of each row.
    bits: b.
    dim: D. With it, the exact value for `round(ratio * D)` positions drawn
      without replacement; without it, the upper bound for uniform positions.

  Returns:
    Bits per element of the row.

  Example:
    >>> round(expected_bits(0.05, 6), 4), round(expected_bits(0.05, 6, 4096), 4)
    (0.3134, 0.3123)

  References:
    arXiv 2505.00850, Lemma 1 (the bound). The exact form is derived:
    `P(G > t) = C(D - t, P) / C(D, P)`.
  """
  reach = _reach(bits)
  if dim is None:
    return ratio * bits * (1 + 1 / math.expm1(ratio * reach)) if ratio else 0.0
  marks = num_marks(ratio, dim)
  flags = sum(
    math.comb(dim - k * reach, marks) / math.comb(dim, marks)
    for k in range(1, (dim - marks) // reach + 1)
  )
  return marks * bits / dim * (1 + flags)


@functools.lru_cache(maxsize=256)
def best_ratio(dim: int) -> float:
  """The marked fraction that pays best for a row of Gaussian weights.

  Marks are outliers on a grid of their own. With t the largest inlier and m the
  largest magnitude, the squared error falls with the ratio as
  `(1 - ratio) t**2 + ratio (m - t)**2`, four times less being worth one bit.
  From that the cost of the gap code is taken off.

  Example:
    >>> [best_ratio(dim) for dim in (1024, 4096, 16384)]
    [0.079, 0.072, 0.067]

  References:
    Reconstruction: arXiv 2505.00850 reports 0.05 to 0.0825.
  """
  normal = statistics.NormalDist()
  most = normal.inv_cdf((1 + 2 ** (-1 / dim)) / 2)  # the median of the largest

  def bits(ratio):
    t = normal.inv_cdf(1 - ratio / 2)
    error = (1 - ratio) * t**2 + ratio * (most - t) ** 2
    width = best_bits(ratio)
    return math.log2(error) / 2 + expected_bits(ratio, width)

  return min((i / 1000 for i in range(1, 301)), key=bits)


def best_bits(ratio: float, dim: int | None = None) -> int:
  """The symbol width that costs least.

  Example:
    >>> best_bits(0.05), best_bits(0.01)
    (6, 8)
  """
  return min(range(1, 9), key=lambda bits: expected_bits(ratio, bits, dim))


def shuffle(positions: Array, dim: int) -> Array:
  """Moves positions as one fixed permutation of `0 .. dim - 1` does.

  Args:
    positions: `[..., P]` int.
    dim: D.

  Returns:
    `[..., P]`, ascending again.

  Example:
    >>> at = shuffle(jnp.arange(4), 1000)
    >>> jnp.sort(unshuffle(at, 1000)).tolist()
    [0, 1, 2, 3]
  """
  rank = np.argsort(_order(dim)).astype(np.int32)
  return jnp.sort(jnp.asarray(rank)[positions], axis=-1)


def unshuffle(positions: Array, dim: int) -> Array:
  """Moves positions back, each in its place; what lies outside stays.

  `jnp.sort` makes it the inverse of `shuffle`.
  """
  inside = (positions >= 0) & (positions < dim)
  moved = jnp.asarray(_order(dim))[jnp.where(inside, positions, 0)]
  return jnp.where(inside, moved, positions)


@functools.lru_cache(maxsize=64)
def _order(dim: int) -> np.ndarray:
  # By the finaliser of MurmurHash3, a bijection: checkpoints depend on it, and
  # no library promises to keep its random numbers.
  x = np.arange(dim, dtype=np.uint32)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
  x ^= x >> np.uint32(16)
  return np.argsort(x, kind="stable").astype(np.int32)


def uneven(positions: Array, dim: int) -> Array:
  """Whether a chi-square test rejects that positions are uniform.

  The rows' statistics add up; a bool scalar, at a level of 1 %.

  Args:
    positions: `[..., P]` int, at least one row.
    dim: D.

  References:
    ICQuant, arXiv 2505.00850: one fixed permutation where positions are not
    uniform. The pooled test and its level are reconstruction.
  """
  if positions.shape[-1] in (0, dim) or dim < 2 * GROUPS:
    return jnp.zeros((), bool)
  statistic = chi_square(positions, dim)
  freedom = statistic.size * (GROUPS - 1)
  # Wilson and Hilferty's normal approximation.
  spread = 2 / (9 * freedom)
  z = jnp.cbrt(jnp.sum(statistic) / freedom) - (1 - spread)
  return z > 2.326 * math.sqrt(spread)


GROUPS = 16
"""Groups of columns whose counts the chi-square test compares."""


def chi_square(positions: Array, dim: int) -> Array:
  """Pearson's statistic of the counts in 16 groups of columns.

  Multiplied by `(D - 1) / (D - P)`, since positions are drawn without
  replacement; so its mean is 15 for uniform positions.

  Args:
    positions: `[..., P]` int, with P in 1..D-1.
    dim: D.

  Returns:
    `[...]` float32.
  """
  marks = positions.shape[-1]
  group = np.arange(dim) * GROUPS // dim
  expected = jnp.asarray(np.bincount(group) * marks / dim, jnp.float32)
  found = jnp.asarray(group)[positions][..., None]
  every = jnp.arange(GROUPS).reshape(*(1,) * (found.ndim - 1), GROUPS)
  counts = jnp.sum(found == every, axis=-2)
  expected = expected.reshape(*(1,) * (counts.ndim - 1), GROUPS)
  return jnp.sum((counts - expected) ** 2 / expected, axis=-1) * (
    (dim - 1) / (dim - marks)
  )


def num_marks(ratio: float, dim: int) -> int:
  """How many of `dim` elements a fraction `ratio` is (nearest, half up)."""
  return min(dim, math.floor(ratio * dim + 0.5))


def _reach(bits: int) -> int:
  if not 1 <= bits <= 8:
    raise ValueError(f"gap symbols have 1 to 8 bits, got {bits=}")
  return 2**bits - 1
