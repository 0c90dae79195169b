"""Every weight method inside every other, over kernels of three kinds.

What a cell must store is counted from the two methods alone: `Part` is one
plane of codes, and each method says what it makes of the parts inside it.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import bits, gaps, sparse
from tests import draws

ROWS = 20


@dataclasses.dataclass(frozen=True)
class Part:
  """One plane of codes, and what it costs.

  Attributes:
    bits: of a code.
    grids: bits of all grids of a row.
    tails: bits of a row's grids where the elements are two tails.
    clusters: how many planes of three labels it has.
    marked: how many gap codes it has.
    taps: whether only the centre tap is stored.
  """

  bits: int
  grids: int
  tails: int
  clusters: int = 0
  marked: int = 0
  taps: bool = False


RTN = Part(3, 32 + 8, 2 * 64)
BLOCKS = Part(3, 3 * (32 + 8), 3 * 2 * 64)
REAL = Part(2, 2 * 32, 2 * 64)
LEAVES = {
  "mlp": (
    ql.rtn(3, exact_zero=True, granularity=ql.per_block(-2, 32)),
    BLOCKS,
    (96, ROWS),
  ),
  "conv": (ql.rtn(3, exact_zero=True), RTN, (3, 3, 32, ROWS)),
  "stacked": (ql.rtn(2), REAL, (2, 96, ROWS)),
}

METHODS = {
  "icquant": lambda inner: ql.icquant(inner, ratio=0.1, shuffle=False),
  "exact_outliers": lambda inner: ql.exact_outliers(inner, sigmas=2.0),
  "splitquant": ql.splitquant,
  "clusterquant": ql.clusterquant,
  "cfws": lambda inner: ql.cfws(fine=inner),
}
# Outer and inner methods that exclude each other, and what the error says.
IMPOSSIBLE = {
  ("icquant", "icquant"): "positions that are coded row by row",
  ("clusterquant", "icquant"): "positions that are coded row by row",
  ("icquant", "cfws"): "put the labels inside that part",
  ("clusterquant", "cfws"): "put the labels inside that part",
}
# The outer branches have values of one sign, so those that are called outliers
# use half of their codes.
WORSE = {("splitquant", "icquant", "conv")}
PAIRS = [
  pair for pair in itertools.product(METHODS, METHODS) if pair not in IMPOSSIBLE
]
# Over a convolution the methods that store positions or a part of the kernel,
# whose sizes depend on what they are in. A kernel without a centre tap, with
# blocks, and a stack are further shapes: each has one half of the methods.
INSIDE_CFWS = [("cfws", "icquant"), ("cfws", "clusterquant"), ("cfws", "cfws")]
SHORT = [
  *(
    (pair, "conv")
    for pair in PAIRS
    if (pair[0] == "icquant" or pair[1] == "icquant" or pair in INSIDE_CFWS)
  ),
  (("icquant", "exact_outliers"), "mlp"),
  (("exact_outliers", "icquant"), "stacked"),
  (("exact_outliers", "clusterquant"), "mlp"),
  (("clusterquant", "splitquant"), "stacked"),
]
CELLS = [
  *SHORT,
  *(
    pytest.param(pair, kind, marks=pytest.mark.study)
    for kind in LEAVES
    for pair in PAIRS
    if (pair, kind) not in SHORT and (kind == "conv" or "cfws" not in pair)
  ),
]


def _parts(method, inner):
  """What a method makes of the parts of its inner quantizer."""
  match method:
    case "icquant":
      return [
        dataclasses.replace(
          part, grids=part.grids + part.tails, marked=part.marked + 1
        )
        for part in inner
      ]
    case "exact_outliers":
      return inner
    case "splitquant":
      return 3 * inner
    case "clusterquant":
      return [
        dataclasses.replace(
          part,
          grids=3 * part.grids,
          tails=3 * part.tails,
          clusters=part.clusters + 1,
        )
        for part in inner
      ]
    case "cfws":
      return [Part(8, 32, 64, taps=True), *inner]


def _expected(q, parts, shape, stack):
  """Bits of the parts, and of what depends on the data."""
  size = math.prod(shape[:-1])
  total = 0
  for part in parts:
    taps = shape[-2] if part.taps else size
    total += 32 * bits.num_words(taps, part.bits) * ROWS
    total += part.grids * ROWS + 8 * part.taps
    total += 32 * -(-size // 20) * ROWS * part.clusters
  found = jax.tree.leaves(q, is_leaf=_of_the_data)
  exact = [x for x in found if isinstance(x, sparse.Sparse)]
  codes = [x for x in found if isinstance(x, sparse.GapCoded)]
  assert len(codes) == sum(part.marked for part in parts)
  return (
    stack * total
    + sum(64 * x.values.size for x in exact)
    + sum(_gaps(code, stack) for code in codes)
  )


def _of_the_data(x):
  return isinstance(x, sparse.Sparse | sparse.GapCoded)


@jax.jit
def _positions(code):
  return code.decode().positions


def _gaps(code, stack):
  """Bits of a flag and a stream for each slice, all as long as the longest."""
  dim = math.prod(code.dims)
  positions = np.asarray(_positions(code))
  flags = np.broadcast_to(code.shuffled, stack)
  words = []
  for marks, flag in zip(
    positions.reshape(stack, -1, positions.shape[-1]), flags, strict=True
  ):
    marks = np.asarray(gaps.shuffle(marks, dim)) if flag else marks
    steps = np.diff(marks, axis=-1, prepend=-1)
    symbols = int(np.sum((steps - 1) // (2**code.bits - 1) + 1))
    words.append(bits.num_words(symbols, code.bits))
  return stack * (8 + 32 * max(words))


@functools.cache
def _weights(kind):
  shape = LEAVES[kind][2]
  w = draws.student_t(shape, 4.0)
  return w.at[1, 1].multiply(4) if kind == "conv" else w


@functools.cache
def _stored(kind, *methods):
  quantizer, _, _ = LEAVES[kind]
  for method in reversed(methods):
    quantizer = METHODS[method](quantizer)
  if kind == "stacked":
    quantizer = ql.stacked(quantizer)
  return ql.quantize(quantizer, _weights(kind))


@jax.jit
def _squared(q, w):
  return jnp.mean((q.dequantize() - w) ** 2)


def _error(q, kind):
  return float(_squared(q, _weights(kind)))


def _skip_no_kernel(kind, *methods):
  """CFWS needs a centre tap; what it says without one is tested below."""
  if kind != "conv" and "cfws" in methods:
    pytest.skip("no kernel of a convolution")


@pytest.mark.parametrize(("pair", "kind"), CELLS)
def test_composes(pair, kind, tmp_path):
  outer, inner = pair
  _, leaf, shape = LEAVES[kind]
  q = _stored(kind, outer, inner)
  assert q.shape == shape

  parts = _parts(outer, _parts(inner, [leaf]))
  stack, kernel = (shape[0], shape[1:]) if kind == "stacked" else (1, shape)
  assert ql.nbits(q) == _expected(q, parts, kernel, stack)

  worse = _error(q, kind) > 1.02 * _error(_stored(kind, outer), kind)
  assert worse == ((outer, inner, kind) in WORSE)

  ql.save(tmp_path / "q", {"w": q})
  back = ql.restore(tmp_path / "q")["w"]
  assert jax.tree.structure(back) == jax.tree.structure(q)
  jax.tree.map(np.testing.assert_array_equal, back, q)


@pytest.mark.parametrize(("outer", "inner"), IMPOSSIBLE)
def test_what_excludes_each_other_says_why(outer, inner):
  with pytest.raises(ValueError, match=IMPOSSIBLE[outer, inner]):
    _stored("conv", outer, inner)


@pytest.mark.parametrize("kind", ["mlp", "stacked"])
def test_cfws_says_that_it_needs_a_convolution(kind):
  message = r"centre tap off a convolution kernel .*, got shape \(96, 20\)"
  with pytest.raises(ValueError, match=message):
    _stored(kind, "cfws")


def test_exact_outliers_around_index_coded_ones_around_splits():
  kind = "conv"
  q = _stored(kind, "exact_outliers", "icquant", "splitquant")
  assert _error(q, kind) < _error(_stored(kind, "icquant", "splitquant"), kind)
  assert isinstance(q.parts[-1], sparse.Sparse)
