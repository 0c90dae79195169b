import dataclasses
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import gaps, stored
from tests import draws


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-3, -2), (-3, -1)])
@pytest.mark.parametrize(("bits", "lo"), [(3, 0), (4, -8), (8, -128), (5, -3)])
def test_packed_roundtrip(axes, bits, lo):
  shape = (4, 32, 6)
  codes = draws.integers(shape, lo, lo + 2**bits)
  packed = stored.Packed.pack(codes, bits, lo, axes)
  assert packed.shape == shape
  np.testing.assert_array_equal(packed.unpack(), codes)


def test_packed_gains_and_loses_leading_axes():
  codes = draws.integers((3, 32, 6), 0, 8)
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
  noise = np.random.default_rng(seed).random((*outer, np.prod(dims)))
  positions = np.sort(np.argsort(noise, axis=-1)[..., :count], axis=-1)
  return stored.Marks(jnp.asarray(positions, jnp.int32), axes, dims)


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
  for each in (marks, stored.Marks(damaged, axes, dims)):
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
    coded = jax.vmap(lambda m: stored.GapCoded.encode(m, 4, shuffled))(stack)
    each = jax.vmap(lambda c: c.pack((-2,)))(coded)
    plane = stored.Packed.pack(stack.unpack(), 1, 0, (-2,))
    return coded.pack((-2,)), each, plane

  *found, plane = packed(stack)
  for each in found:
    np.testing.assert_array_equal(each.words, plane.words)
    assert jax.tree.structure(each) == jax.tree.structure(plane)


def test_packing_a_gap_code_makes_nothing_as_large_as_the_plane():
  marks = _marks((128,), (4096,), (-2,), 41)
  coded = jax.eval_shape(lambda m: stored.GapCoded.encode(m, 7), marks)
  program = jax.jit(lambda c: c.pack((-2,))).lower(coded).compile()
  assert program.memory_analysis().temp_size_in_bytes < 4096 * 128 / 2


def test_sparse_is_exact():
  x = jnp.array([[0.0, -2.5], [jnp.pi, 0.0]])
  sparse = stored.Sparse.from_dense(x, x != 0)
  assert sparse.index.dtype == jnp.uint32
  np.testing.assert_array_equal(sparse.dequantize(), x)


@hypothesis.given(
  radix=st.integers(2, 256), size=st.integers(1, 100), data=st.data()
)
def test_digits_roundtrip_of_every_radix(radix, size, data):
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  labels = rng.integers(0, radix, (size, 3))
  labels[-1] = radix - 1
  digits = stored.Digits.pack(jnp.asarray(labels, jnp.uint8), radix, (-2,))
  found = digits.unpack()
  assert found.dtype == jnp.uint8
  np.testing.assert_array_equal(found, labels)
  assert digits.shape == (size, 3)
  # As many digits to a word as fit: the largest m with radix**m <= 2**32.
  per_word = next(m for m in range(32, 0, -1) if radix**m <= 2**32)
  assert digits.words.shape == (-(-size // per_word), 3)


@pytest.mark.parametrize(
  ("radix", "per_word"),
  [(2, 32), (3, 20), (4, 16), (5, 13), (6, 12), (16, 8), (17, 7), (256, 4)],
)
def test_digits_that_fill_their_words(radix, per_word):
  # Every digit at its largest: the word is radix**m - 1, with no carry lost.
  labels = jnp.full((2 * per_word, 1), radix - 1)
  digits = stored.Digits.pack(labels, radix, (-2,))
  assert digits.words.ravel().tolist() == [radix**per_word - 1] * 2
  np.testing.assert_array_equal(digits.unpack(), labels)


def test_digit_m_of_word_w_is_element_m_times_words_plus_w():
  labels = jnp.array([1, 2, 0, 0, 2]).reshape(5, 1)
  words = stored.Digits.pack(jnp.tile(labels, (8, 1)), 3, (-2,)).words
  expected = [0, 0]
  for element, label in enumerate(jnp.tile(labels, (8, 1)).ravel().tolist()):
    expected[element % 2] += label * 3 ** (element // 2)
  assert words.ravel().tolist() == expected


@pytest.mark.parametrize(
  "axes", [(-1,), (-2,), (-3, -2), (-3, -1), (-3, -2, -1), (-3,)]
)
@pytest.mark.parametrize("radix", [3, 6])
def test_digits_along_any_axes(axes, radix):
  shape = (4, 30, 6)
  labels = draws.integers(shape, 0, radix)
  digits = stored.Digits.pack(labels, radix, axes)
  assert digits.shape == shape
  np.testing.assert_array_equal(digits.unpack(), labels)
  # Words stand where the last of the folded axes stood.
  rest = [n for i, n in enumerate(shape) if i - 3 not in axes]
  assert digits.words.ndim == len(rest) + 1
  np.testing.assert_array_equal(jax.jit(lambda d: d.unpack())(digits), labels)


def test_digits_gain_and_lose_leading_axes():
  labels = draws.integers((3, 50, 6), 0, 3)
  digits = jax.vmap(lambda x: stored.Digits.pack(x, 3, (-2,)))(labels)
  assert digits.shape == (3, 50, 6)
  np.testing.assert_array_equal(digits.unpack(), labels)
  np.testing.assert_array_equal(jax.vmap(lambda d: d.unpack())(digits), labels)
  one = jax.tree.map(lambda leaf: leaf[1], digits)
  np.testing.assert_array_equal(one.unpack(), labels[1])
  # Packed as a stack at once, the words still belong to one slice each.
  digits = stored.Digits.pack(labels, 3, (-2,))
  one = jax.tree.map(lambda leaf: leaf[1], digits)
  np.testing.assert_array_equal(one.unpack(), labels[1])


@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 50, 5)])
def test_a_slice_through_digits_is_refused(shape):
  digits = stored.Digits.pack(jnp.zeros(shape, int), 3, (-3, -2, -1))
  with pytest.raises(ValueError, match=r"do not hold \d+ .*sliced"):
    jax.tree.map(lambda leaf: leaf[0], digits).unpack()


@pytest.mark.parametrize("radix", [-3, 0, 1, 257])
def test_digits_refuse_other_bases(radix):
  with pytest.raises(ValueError, match=f"base of 2 to 256, got radix={radix}"):
    stored.Digits.pack(jnp.zeros((4, 1), int), radix, (-2,))


def test_a_pair_names_both_labels():
  first = draws.integers((40, 3), 0, 2)
  second = draws.integers((40, 3), 0, 5, 1)
  forms = [lambda x, _: x, lambda x, n: stored.Digits.pack(x, n, (-2,))]
  for pack in forms:
    pair = stored.Pair(pack(first, 2), pack(second, 5), 5)
    np.testing.assert_array_equal(pair.unpack(), 5 * first + second)
  assert pair.axes == (-2,)
  mapped = jax.vmap(lambda p: p.unpack(), in_axes=-1, out_axes=-1)(
    stored.Pair(first[:, None], second[:, None], 5)
  )
  np.testing.assert_array_equal(mapped[:, 0], 5 * first + second)


def test_a_pair_of_marks_and_labels():
  marks = _marks((5,), (40,), (-2,), 4)
  inner = draws.integers((40, 5), 0, 3, 1)
  expected = 3 * marks.unpack().astype(int) + inner
  for first in (marks, stored.GapCoded.encode(marks, 3)):
    pair = stored.Pair(first, stored.Digits.pack(inner, 3, (-2,)), 3)
    np.testing.assert_array_equal(pair.unpack(), expected)
    assert pair.axes == marks.axes


def _clumped(outer, dims, axes, count):
  """Marks that all stand at the start of their rows."""
  at = jnp.broadcast_to(jnp.arange(count), (*outer, count))
  return stored.Marks(at.astype(jnp.int32), axes, dims)


@pytest.mark.parametrize("shuffled", [True, False, None])
@pytest.mark.parametrize(
  ("outer", "dims", "axes"),
  [((128,), (40,), (-2,)), ((2, 6), (3, 3, 5), (-4, -3, -2))],
)
def test_shuffled_roundtrip(shuffled, outer, dims, axes):
  if outer == (2, 6):
    axes = (-5, -4, -2)
  for marks in (_marks(outer, dims, axes, 7), _clumped(outer, dims, axes, 7)):
    coded = stored.GapCoded.encode(marks, 3, shuffled)
    np.testing.assert_array_equal(coded.decode().positions, marks.positions)
    np.testing.assert_array_equal(coded.trim().unpack(), marks.unpack())
    under_jit = jax.jit(lambda m: stored.GapCoded.encode(m, 3, shuffled))(marks)
    np.testing.assert_array_equal(under_jit.symbols.words, coded.symbols.words)


def test_a_test_decides_whether_to_shuffle():
  outer, dims, axes = (128,), (400,), (-2,)
  even = stored.GapCoded.encode(_marks(outer, dims, axes, 20), 4)
  clumped = stored.GapCoded.encode(_clumped(outer, dims, axes, 20), 4)
  assert not even.shuffled
  assert clumped.shuffled
  assert clumped.shuffled.dtype == bool
  # The flag is the only price, one byte.
  assert clumped.shuffled.shape == ()
  as_is = stored.GapCoded.encode(_clumped(outer, dims, axes, 20), 4, False)
  np.testing.assert_array_equal(as_is.unpack(), clumped.unpack())


def test_shuffling_makes_clumps_cheap():
  # 16 marks, all in the last eighth of a row: long gaps first.
  at = 896 + 8 * jnp.arange(16)
  marks = stored.Marks(
    jnp.broadcast_to(at, (128, 16)).astype(jnp.int32), (-2,), (1024,)
  )
  width = gaps.best_bits(16 / 1024)

  def size(shuffled):
    coded = stored.GapCoded.encode(marks, width, shuffled).trim()
    return coded.symbols.words.size

  assert size(True) < 0.95 * size(False)
  assert size(None) == size(True)


def test_each_slice_of_a_stack_decides_for_itself():
  dims, axes = (400,), (-2,)
  slices = [_marks((64,), dims, axes, 20), _clumped((64,), dims, axes, 20)]
  stack = jax.tree.map(lambda *x: jnp.stack(x), *slices)
  coded = jax.vmap(lambda m: stored.GapCoded.encode(m, 4))(stack)
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
  coded = stored.GapCoded.encode(marks, 3, shuffled)
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
