import jax.numpy as jnp
import numpy as np

from quantlab.models import positions
from tests import draws

X, Y = draws.normal((2, 1, 9, 2, 8))


def test_rope_tells_distance_alone():
  rope = positions.Rope(theta=50.0)
  # The same vectors at all positions: scores depend on the difference.
  query, key = (jnp.broadcast_to(v[:, :1], v.shape) for v in (X, Y))
  scores = jnp.einsum("bthd,bshd->hts", rope.rotate(query), rope.rotate(key))
  for offset in range(-3, 4):
    diagonal = np.diagonal(scores, offset, axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal, diagonal[:, :1] + 0 * diagonal, 2e-5)
  assert np.ptp(scores) > 0.1


def test_rope_pairs_the_halves():
  found = positions.Rope(theta=100.0).rotate(X)
  np.testing.assert_allclose(found[:, 0], X[:, 0])
  speeds = 100.0 ** (-np.arange(4) / 4)
  for i, speed in enumerate(speeds):
    # A pair of channels as a complex number turns by speed times position.
    turn = np.exp(1j * speed * np.arange(9))[None, :, None]
    pair = (X[..., i] + 1j * X[..., i + 4]) * turn
    np.testing.assert_allclose(found[..., i], pair.real, atol=1e-5)
    np.testing.assert_allclose(found[..., i + 4], pair.imag, atol=1e-5)


def test_rope_keeps_the_type():
  assert positions.Rope().rotate(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_llama3_slows_long_waves_alone():
  plain = positions.Rope(theta=500000.0).speeds(64)
  slow = positions.Rope(500000.0, 32.0, 8192, 1.0, 4.0).speeds(64)
  length = 2 * np.pi / plain
  short, long = length < 8192 / 4, length > 8192
  np.testing.assert_allclose(slow[short], plain[short])
  np.testing.assert_allclose(slow[long], plain[long] / 32)
  between = ~short & ~long
  assert between.any()
  assert (slow[between] < plain[between]).all()
  assert (slow[between] > plain[between] / 32).all()
  assert (np.diff(slow) < 0).all()


def test_alibi_falls_with_distance():
  alibi = positions.Alibi()
  bias = np.asarray(alibi.bias(8, 5))
  assert bias.shape == (1, 8, 1, 5)
  np.testing.assert_allclose(
    np.diff(bias[0, :, 0]), np.broadcast_to(2.0 ** -np.arange(1, 9), (4, 8)).T
  )
  assert alibi.rotate(X) is X
  assert positions.Rope().bias(8, 5) is None


def test_alibi_of_odd_counts():
  # 112 heads: BLOOM-176B. 64 slopes, then each second one of 128.
  slopes = positions.Alibi().slopes(112)
  assert len(slopes) == len(set(slopes)) == 112
  np.testing.assert_allclose(slopes[:2], [2**-0.125, 2**-0.25])
  np.testing.assert_allclose(slopes[64:66], [2**-0.0625, 2**-0.1875])


def test_rope_from_a_start_on():
  rope = positions.Rope()
  found = rope.rotate(X[:, 3:5], 3, 9)
  np.testing.assert_array_equal(found, rope.rotate(X)[:, 3:5])
