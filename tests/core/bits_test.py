import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import bits
from tests import draws


@hypothesis.given(
  n=st.sampled_from([*range(1, 9), 16]),
  length=st.integers(1, 700),
  after=st.sampled_from([1, 3]),
  seed=st.integers(0, 99),
)
def test_roundtrip_in_the_fewest_words(n, length, after, seed):
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, 2**n, (2, length, after)).astype(np.uint16)
  words = bits.pack(jnp.asarray(codes), n, axis=1)
  assert words.dtype == jnp.uint32
  assert words.shape == (2, bits.num_words(length, n), after)
  np.testing.assert_array_equal(bits.unpack(words, n, length, axis=1), codes)
  # At most two words more than the entropy of the codes per axis.
  assert 0 <= words.shape[1] * 32 - length * n < 3 * 32


@pytest.mark.parametrize("n", [*range(1, 9), 16])
@pytest.mark.parametrize("length", [32, 96, 128, 384, 4096])
def test_exactly_n_bits_per_code(n, length):
  assert bits.num_words(length, n) * 32 == length * n


def test_layout_is_the_documented_one():
  # Every (bits, k) must sit where the module's formula says.
  for n in range(1, 9):
    block = 256
    width, fields = block * n // 32, 16 // n
    for k in range(2 * width * fields):
      codes = jnp.zeros(block, jnp.uint8).at[k].set(1)
      words = np.asarray(bits.pack(codes, n))
      t, rest = divmod(k, 2 * width)
      i, h = divmod(rest, 2)
      assert words[i] == 1 << (n * t + 16 * h), (n, k)
      assert np.count_nonzero(words) == 1
      if n != 3 and k > 8:
        break  # one spelled-out sweep is enough; roundtrips cover the others


def test_spare_stream_of_three_bits():
  # 256 codes: 24 words, 5 fields a half, spare bits 15 and 31, m = 8.
  for k in range(240, 256):
    c, h = divmod(k - 240, 2)
    words = np.asarray(bits.pack(jnp.zeros(256, jnp.uint8).at[k].set(7), 3))
    expected = np.zeros(24, np.uint32)
    expected[[c, c + 8, c + 16]] = 1 << (15 + 16 * h)
    np.testing.assert_array_equal(words, expected)


def test_neighbours_share_a_word():
  codes = jnp.array([5, 10] + [0] * 254)
  word = int(bits.pack(codes, 4)[0])
  assert word == 5 | 10 << 16


def test_empty_axes():
  assert bits.pack(jnp.zeros((0, 4), jnp.uint8), 3, axis=0).shape == (0, 4)
  words = bits.pack(jnp.zeros((4, 0), jnp.uint8), 3, axis=0)
  assert bits.unpack(words, 3, 4, axis=0).shape == (4, 0)


@pytest.mark.parametrize("n", [0, 9, 15, 17])
def test_refuses_other_widths(n):
  with pytest.raises(ValueError, match=f"bits={n}"):
    bits.pack(jnp.zeros(8, jnp.uint8), n)


def test_jit_and_vmap():
  codes = draws.integers((3, 64, 5), 0, 8)
  packed = jax.jit(jax.vmap(lambda c: bits.pack(c, 3, 0)))(codes)
  back = jax.vmap(lambda w: bits.unpack(w, 3, 64, 0))(packed)
  np.testing.assert_array_equal(back, codes)
