import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import stored


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-3, -2), (-3, -1)])
@pytest.mark.parametrize(("bits", "lo"), [(3, 0), (4, -8), (8, -128), (5, -3)])
def test_packed_roundtrip(axes, bits, lo):
  shape = (4, 32, 6)
  codes = jax.random.randint(jax.random.key(0), shape, lo, lo + 2**bits)
  packed = stored.Packed.pack(codes, bits, lo, axes)
  assert packed.shape == shape
  np.testing.assert_array_equal(packed.unpack(), codes)


def test_packed_gains_and_loses_leading_axes():
  codes = jax.random.randint(jax.random.key(0), (3, 32, 6), 0, 8)
  packed = jax.vmap(lambda c: stored.Packed.pack(c, 3, 0, (-2,)))(codes)
  assert packed.shape == (3, 32, 6)
  np.testing.assert_array_equal(packed.unpack(), codes)
  one = jax.tree.map(lambda leaf: leaf[1], packed)
  np.testing.assert_array_equal(one.unpack(), codes[1])


def test_a_slice_through_packed_axes_is_refused():
  packed = stored.Packed.pack(jnp.zeros((3, 5, 5), int), 3, 0, (-3, -2, -1))
  with pytest.raises(ValueError, match=r"\(\) do not hold 75 codes of 3 bits"):
    jax.tree.map(lambda leaf: leaf[0], packed).unpack()


@pytest.mark.parametrize(
  ("shape", "bits", "reduced", "expected"),
  [
    ((64, 48), 3, (-2,), (-2,)),  # rows stay apart
    ((64, 48), 3, (-2, -1), (-2,)),  # per tensor: as a kernel
    ((3, 3, 32, 8), 3, (-4, -3, -2), (-4, -3, -2)),
    ((9, 7), 3, (-2,), (-2, -1)),  # rows would waste bits: flat
    ((32,), 4, (-1,), (-1,)),
    ((5,), 4, (), (-1,)),
    ((3, 4, 4), 4, (-2,), (-2, -1)),  # a stack of small kernels
  ],
)
def test_packing_axes_waste_nothing(shape, bits, reduced, expected):
  assert stored.packing_axes(shape, bits, reduced) == expected


def _marks(outer, dims, axes, count, seed=0):
  noise = jax.random.uniform(jax.random.key(seed), (*outer, np.prod(dims)))
  positions = jnp.sort(jax.lax.top_k(noise, count)[1], axis=-1)
  return stored.Marks(positions.astype(jnp.int32), axes, dims)


@pytest.mark.parametrize(
  ("outer", "dims", "axes"),
  [
    ((128,), (40,), (-2,)),
    ((256,), (40,), (-2,)),
    ((5,), (40,), (-2,)),
    ((8,), (3, 3, 4), (-4, -3, -2)),
    ((2, 64), (40,), (-2,)),
  ],
)
@pytest.mark.parametrize("count", [0, 3, 36])
def test_gap_coded_roundtrip_and_trim(outer, dims, axes, count):
  marks = _marks(outer, dims, axes, count)
  coded = stored.GapCoded.encode(marks, 3)
  np.testing.assert_array_equal(coded.decode().positions, marks.positions)
  trimmed = coded.trim()
  np.testing.assert_array_equal(trimmed.unpack(), marks.unpack())
  assert trimmed.symbols.words.size <= coded.symbols.words.size


def test_streams_hardly_pad():
  marks = _marks((512,), (4096,), (-2,), 205)
  words = stored.GapCoded.encode(marks, 6).trim().symbols.words
  gaps = jnp.diff(marks.positions, axis=1, prepend=-1)
  symbols = int(jnp.sum((gaps - 1) // 63 + 1))
  assert words.size * 32 == pytest.approx(symbols * 6, rel=5e-3)


def test_marks_drop_damaged_positions():
  marks = stored.Marks(jnp.array([[-3, 1, 9]]), (-2,), (4,))
  assert marks.unpack().ravel().tolist() == [False, True, False, False]


def test_sparse_is_exact():
  x = jnp.array([[0.0, -2.5], [jnp.pi, 0.0]])
  sparse = stored.Sparse.from_dense(x, x != 0)
  assert sparse.index.dtype == jnp.uint32
  np.testing.assert_array_equal(sparse.dequantize(), x)
