"""SplitQuant: a layer as three, one per cluster of values (arXiv 2501.12428).

The values of a layer are clustered into lower, middle and upper; each branch
keeps one cluster and has zeros elsewhere, so the branches add up to the layer
exactly. Each then has a smaller range of its own, and outliers are kept. The
price is three planes of codes; `clusterquant`, our form of the same idea, pays
for one plane and a label.
"""

from quantlab.core import base, numerics
from quantlab.transforms import compose, labels, partition


@base.interned
def splitquant(
  inner: base.Quantizer,
  *,
  k: int = 3,
  rows: base.Granularity | None = None,
) -> base.Quantizer:
  """Quantizes the clusters of values as layers of their own.

  A branch is a whole tensor with zeros, and `inner` sees those zeros: a grid
  that has no level at 0 adds the middle branch's error at 0 to every weight of
  the others. `rtn(bits, exact_zero=True)` has one.

  Kernels with fewer than `k` outputs are not split, as in the paper. Which
  leaves to leave alone is the plan's business; the paper skips norms and
  embeddings, and splits a bias by itself without quantizing it:

    by_path([
      ("norm|embed", keep()),
      ("bias", splitquant(keep())),
      ("kernel", splitquant(rtn(2, exact_zero=True))),
    ])

  The paper's split of activations, three equal chunks of the channels with a
  scale each, is the granularity `chunks(-1, 3)`.

  Args:
    inner: quantizes each branch.
    k: clusters. The paper has 3.
    rows: which elements are clustered together; by default, as in the paper,
      each output kernel of a convolution `[kh, kw, I, O]` and all of any other
      tensor.

  Returns:
    A quantizer whose result is a `Sum` of `k` branches.

  Raises:
    ValueError: `k` is below 2.

  Example:
    >>> import jax
    >>> import quantlab as ql
    >>> w = jax.random.normal(jax.random.key(0), (128, 128))
    >>> branches = ql.quantize(splitquant(ql.keep()), w)
    >>> bool((ql.dequantize(branches) == w).all())
    True

  References:
    arXiv 2501.12428. Reconstruction: the deterministic start of the clusters
    and the disjoint branches of degenerate tensors. The paper's quantizer has a
    real-valued zero point (`rtn(bits)`); an exact zero is our advice.
  """
  return _clustered(inner, k, rows, _branches)


@base.interned
def clusterquant(
  inner: base.Quantizer,
  *,
  k: int = 3,
  rows: base.Granularity | None = None,
) -> base.Quantizer:
  """Gives each cluster of values a grid of its own, in one plane of codes.

  Ours, not the paper's: the parts of `splitquant` do not overlap, so one code
  per weight and a label say the same as k codes. 20 labels of three share a
  word, 1.6 bits each. A grid covers its cluster only, without a zero.

  Args:
    inner: fits the grid of each cluster.
    k: clusters.
    rows: as in `splitquant`.

  Returns:
    A quantizer whose grid is `Labelled`.

  Raises:
    ValueError: `k` is below 2.

  Example:
    >>> import jax
    >>> import quantlab as ql
    >>> w = jax.random.normal(jax.random.key(0), (1280, 128))
    >>> q = ql.quantize(clusterquant(ql.rtn(2, granularity=ql.per_tensor)), w)
    >>> round(ql.bits_per_weight(q), 1)
    3.6
  """
  return _clustered(inner, k, rows, partition.label)


def _branches(labeler, *inner):
  return partition.split(partition.branches(labeler, len(inner)), *inner)


def _clustered(inner, k, rows, divide):
  def choose(shape):
    if len(shape) > 1 and shape[-1] < k:
      return inner
    cells = rows or _cells(shape)
    return divide(labels.clusters(k, cells), *[inner] * k)

  labels.clusters(k)  # refuses a bad k now
  return compose.by_shape(choose)


def _cells(shape):
  return numerics.per_output if len(shape) == 4 else numerics.per_tensor
