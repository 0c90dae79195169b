import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import stored
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
