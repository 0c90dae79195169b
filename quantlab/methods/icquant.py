"""ICQuant: index-coded outliers around any quantizer (arXiv 2505.00850).

Taking the largest 5 % of each row out of the grid halves the range that the
rest must cover, which is worth about one bit. The outliers are quantized too,
to the same number of bits with a grid of their own; what remains to be paid is
knowing where they are, about 0.31 bit per weight as gaps in short symbols.
"""

import math

from quantlab.core import base, gaps, numerics, sparse
from quantlab.transforms import compose, labels, partition, plan, store


@base.interned
def icquant(
  inner: base.Quantizer,
  *,
  ratio: float | None = None,
  gap_bits: int | None = None,
  shuffle: bool | None = None,
  rows: base.Granularity = numerics.per_output,
  stream_rows: int = sparse.STREAM_ROWS,
) -> base.Quantizer:
  """Gives the outliers of each row a grid of their own.

  `inner` runs twice, on the inliers and on the outliers of each row; a label
  says whose grid a code is on. Where `inner` fits a uniform grid, that of the
  outliers spends one bit on the sign and the others on evenly spaced
  magnitudes between the smallest and the largest outlier of that sign. Where
  it fits tables, the outliers have a table of their own.

  Args:
    inner: any quantizer.
    ratio: outliers as a fraction of each row, in [0, 1]. The paper reports
      0.05 and 0.0825. None takes what pays best for Gaussian rows of the
      tensor's length, about 0.08 (`core.gaps.best_ratio`).
    gap_bits: bits of a gap symbol. None takes what costs least for uniform
      positions, 6 at 0.05 and 5 at 0.0825 (`core.gaps.best_bits`).
    shuffle: whether positions go through one fixed permutation of the inputs
      first, which makes them uniform. None lets a chi-square test decide for
      each tensor (`core.gaps.uneven`).
    rows: which elements share a count of outliers; by default each output
      channel of a kernel `[..., K, N]`.
    stream_rows: rows that share a stream of gap symbols. A wrong bit moves
      later outliers of all of them; a stream of one row costs 0.008 bits per
      weight at rows of 4096 (`docs/bit-errors.md`).

  Returns:
    A quantizer whose grid is `Labelled` with gap-coded labels.

  Raises:
    ValueError: `ratio` or `gap_bits` is out of range; or, when used, `inner`
      codes positions itself, or stores less than the whole tensor.

  Example:
    >>> import jax
    >>> import quantlab as ql
    >>> w = jax.random.normal(jax.random.key(0), (4096, 128))
    >>> def error(q):
    ...   return ((ql.dequantize(ql.quantize(q, w)) - w) ** 2).mean().item()
    >>> round(error(ql.rtn(2)) / error(icquant(ql.rtn(2), ratio=0.05)), 1)
    3.5

  References:
    arXiv 2505.00850. Reconstruction: the form of both value grids, the rounding
    of the outlier count, the flag's bit pattern, the streams that rows share
    (see `core.gaps`), and how ratio and permutation are chosen.
  """
  code = store.gap_code(gap_bits, shuffle=shuffle, stream_rows=stream_rows)
  tails = plan.chain(labels.tails(), inner)

  def coded(ratio):
    labeler = labels.outliers(ratio, rows)
    labelled = partition.label(labeler, inner, tails)
    return plan.chain(labelled, code) if ratio else inner

  def choose(shape):
    cells = rows(shape)
    return coded(gaps.best_ratio(math.prod(shape) // math.prod(cells)))

  return compose.by_shape(choose) if ratio is None else coded(ratio)
