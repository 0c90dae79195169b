import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import gaps, sparse, stored
from tests import draws


def _marks(outer, dims, axes, count, seed=0):
  noise = np.random.default_rng(seed).random((*outer, np.prod(dims)))
  positions = np.sort(np.argsort(noise, axis=-1)[..., :count], axis=-1)
  return sparse.Marks(jnp.asarray(positions, jnp.int32), axes, dims)


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
  coded = sparse.GapCoded.encode(marks, 3)
  np.testing.assert_array_equal(coded.decode().positions, marks.positions)
  trimmed = coded.trim()
  np.testing.assert_array_equal(trimmed.unpack(), marks.unpack())
  assert trimmed.symbols.words.size <= coded.symbols.words.size


def test_streams_hardly_pad():
  marks = _marks((512,), (4096,), (-2,), 205)
  words = sparse.GapCoded.encode(marks, 6).trim().symbols.words
  gaps = jnp.diff(marks.positions, axis=1, prepend=-1)
  symbols = int(jnp.sum((gaps - 1) // 63 + 1))
  assert words.size * 32 == pytest.approx(symbols * 6, rel=5e-3)


def test_marks_drop_damaged_positions():
  marks = sparse.Marks(jnp.array([[-3, 1, 9]]), (-2,), (4,))
  assert marks.unpack().ravel().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
  ("outer", "dims", "axes", "packed"),
  [
    ((5,), (256,), (-2,), (-2,)),
    ((5,), (384,), (-2,), (-2,)),  # blocks of 128
    ((5,), (40,), (-2,), (-2,)),  # one block, with bits to spare
    ((2, 6), (3, 3, 16), (-5, -4, -2), (-5, -4, -2)),
    ((3, 64), (40,), (-2,), (-2, -1)),  # rows end within words
    ((), (16, 20), (-2, -1), (-2,)),  # and words within a row
    ((40,), (6, 4), (-3, -1), (-2,)),
  ],
)
def test_marks_are_packed_as_their_plane(outer, dims, axes, packed):
  marks = _marks(outer, dims, axes, 7)
  damaged = marks.positions.at[..., 0].set(-1).at[..., 6].set(math.prod(dims))
  for each in (marks, sparse.Marks(damaged, axes, dims)):
    expected = stored.Packed.pack(each.unpack(), 1, 0, packed)
    found = each.pack(packed)
    np.testing.assert_array_equal(found.words, expected.words)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.mark.parametrize("shuffled", [True, False])
def test_a_stack_of_gap_codes_is_packed_as_its_planes(shuffled):
  marks = [_marks((64,), (256,), (-2,), 20, seed) for seed in range(2)]
  stack = jax.tree.map(lambda *x: jnp.stack(x), *marks)

  @jax.jit
  def packed(stack):
    coded = jax.vmap(lambda m: sparse.GapCoded.encode(m, 4, shuffled))(stack)
    each = jax.vmap(lambda c: c.pack((-2,)))(coded)
    plane = stored.Packed.pack(stack.unpack(), 1, 0, (-2,))
    return coded.pack((-2,)), each, plane

  *found, plane = packed(stack)
  for each in found:
    np.testing.assert_array_equal(each.words, plane.words)
    assert jax.tree.structure(each) == jax.tree.structure(plane)


def test_packing_a_gap_code_makes_nothing_as_large_as_the_plane():
  marks = _marks((128,), (4096,), (-2,), 41)
  coded = jax.eval_shape(lambda m: sparse.GapCoded.encode(m, 7), marks)
  program = jax.jit(lambda c: c.pack((-2,))).lower(coded).compile()
  assert program.memory_analysis().temp_size_in_bytes < 4096 * 128 / 2


def test_sparse_is_exact():
  x = jnp.array([[0.0, -2.5], [jnp.pi, 0.0]])
  few = sparse.Sparse.from_dense(x, x != 0)
  assert few.index.dtype == jnp.uint32
  np.testing.assert_array_equal(few.dequantize(), x)


def test_places_of_a_tensor_of_more_elements_than_int32_counts():
  dims = (3, 2**15, 43_000)
  index = np.array([0, 2**31, math.prod(dims) - 1], np.uint32)
  few = sparse.Sparse(jnp.asarray(index), jnp.ones(3), dims)
  np.testing.assert_array_equal(few.places(), np.unravel_index(index, dims))


def test_a_pair_of_marks_and_labels():
  marks = _marks((5,), (40,), (-2,), 4)
  inner = draws.integers((40, 5), 0, 3, 1)
  expected = 3 * marks.unpack().astype(int) + inner
  for first in (marks, sparse.GapCoded.encode(marks, 3)):
    pair = stored.Pair(first, stored.Digits.pack(inner, 3, (-2,)), 3)
    np.testing.assert_array_equal(pair.unpack(), expected)
    assert pair.axes == marks.axes


def _clumped(outer, dims, axes, count):
  """Marks that all stand at the start of their rows."""
  at = jnp.broadcast_to(jnp.arange(count), (*outer, count))
  return sparse.Marks(at.astype(jnp.int32), axes, dims)


@pytest.mark.parametrize("shuffled", [True, False, None])
@pytest.mark.parametrize(
  ("outer", "dims", "axes"),
  [((128,), (40,), (-2,)), ((2, 6), (3, 3, 5), (-4, -3, -2))],
)
def test_shuffled_roundtrip(shuffled, outer, dims, axes):
  if outer == (2, 6):
    axes = (-5, -4, -2)
  for marks in (_marks(outer, dims, axes, 7), _clumped(outer, dims, axes, 7)):
    coded = sparse.GapCoded.encode(marks, 3, shuffled)
    np.testing.assert_array_equal(coded.decode().positions, marks.positions)
    np.testing.assert_array_equal(coded.trim().unpack(), marks.unpack())
    under_jit = jax.jit(lambda m: sparse.GapCoded.encode(m, 3, shuffled))(marks)
    np.testing.assert_array_equal(under_jit.symbols.words, coded.symbols.words)


def test_a_test_decides_whether_to_shuffle():
  outer, dims, axes = (128,), (400,), (-2,)
  even = sparse.GapCoded.encode(_marks(outer, dims, axes, 20), 4)
  clumped = sparse.GapCoded.encode(_clumped(outer, dims, axes, 20), 4)
  assert not even.shuffled
  assert clumped.shuffled
  assert clumped.shuffled.dtype == bool
  # The flag is the only price, one byte.
  assert clumped.shuffled.shape == ()
  as_is = sparse.GapCoded.encode(_clumped(outer, dims, axes, 20), 4, False)
  np.testing.assert_array_equal(as_is.unpack(), clumped.unpack())


def test_shuffling_makes_clumps_cheap():
  # 16 marks, all in the last eighth of a row: long gaps first.
  at = 896 + 8 * jnp.arange(16)
  marks = sparse.Marks(
    jnp.broadcast_to(at, (128, 16)).astype(jnp.int32), (-2,), (1024,)
  )
  width = gaps.best_bits(16 / 1024)

  def size(shuffled):
    coded = sparse.GapCoded.encode(marks, width, shuffled).trim()
    return coded.symbols.words.size

  assert size(True) < 0.95 * size(False)
  assert size(None) == size(True)


def test_each_slice_of_a_stack_decides_for_itself():
  dims, axes = (400,), (-2,)
  slices = [_marks((64,), dims, axes, 20), _clumped((64,), dims, axes, 20)]
  stack = jax.tree.map(lambda *x: jnp.stack(x), *slices)
  coded = jax.vmap(lambda m: sparse.GapCoded.encode(m, 4))(stack)
  assert coded.shuffled.tolist() == [False, True]
  expected = jnp.stack([m.unpack() for m in slices])
  np.testing.assert_array_equal(coded.unpack(), expected)
  np.testing.assert_array_equal(coded.trim().unpack(), expected)
  mapped = jax.vmap(lambda c: c.unpack())(coded)
  np.testing.assert_array_equal(mapped, expected)
  for i in range(2):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], coded)
    np.testing.assert_array_equal(one.unpack(), expected[i])
  _, scanned = jax.lax.scan(lambda c, x: (c, x.unpack()), 0, coded)
  np.testing.assert_array_equal(scanned, expected)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_damaged_gap_code_marks_only_places_of_the_row(shuffled):
  marks = _marks((4,), (40,), (-2,), 6)
  coded = sparse.GapCoded.encode(marks, 3, shuffled)
  words = coded.symbols.words
  for bit in range(0, words.size * 32, 7):
    flip = jnp.uint32(1) << jnp.uint32(bit % 32)
    broken = words.at[0, bit // 32].set(words[0, bit // 32] ^ flip)
    damaged = dataclasses.replace(
      coded, symbols=dataclasses.replace(coded.symbols, words=broken)
    )
    plane = damaged.unpack()
    assert plane.shape == (40, 4)
    assert int(jnp.max(jnp.sum(plane, axis=0))) <= 6
