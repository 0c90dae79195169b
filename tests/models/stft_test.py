import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.models import stft


def _signal(samples, seed=0):
  return np.random.default_rng(seed).standard_normal(samples)


@pytest.mark.parametrize("samples", [1, 99, 512, 1234])
def test_synthesis_gives_the_signal_back(samples):
  x = _signal(samples)
  restored = stft.synthesise(stft.analyse(x), samples)
  np.testing.assert_allclose(restored, x, atol=1e-12)


def test_frames_are_counted_as_the_convention_says():
  x = _signal(1730).astype(np.float32)
  assert stft.analyse(x, padding=0).shape == (1 + (1730 - 512) // 100, 257)
  assert stft.analyse(x).shape == (1 + (1730 + 512) // 100, 257)
  assert stft.analyse(x).dtype == np.complex64


def test_a_tone_is_in_its_bin_with_the_windows_gain():
  t = np.arange(4096)
  x = np.cos(2 * np.pi * 40 / 512 * t)
  magnitudes = np.abs(stft.analyse(x, padding=0))[10]
  assert magnitudes.argmax() == 40
  # Half of the tone is at positive frequencies; a Hann window adds up to 200.
  np.testing.assert_allclose(magnitudes[40], 100, rtol=1e-6)


def test_the_window_lies_in_the_middle_and_is_periodic():
  x = np.zeros(512)
  x[256] = 1  # where the window is 1
  np.testing.assert_allclose(np.abs(stft.analyse(x, padding=0)), 1)
  for silent in (55, 56, 456):
    x = np.zeros(512)
    x[silent] = 1
    np.testing.assert_allclose(stft.analyse(x, padding=0), 0, atol=1e-12)


def test_a_stream_is_the_offline_transform_delayed():
  x = _signal(1150).astype(np.float32)
  spectra = stft.analyse(x)
  whole = stft.synthesise(spectra, len(x))
  blocks = np.zeros((len(spectra), 100), np.float32)
  flat = blocks.reshape(-1)
  flat[100 : 100 + len(x)] = x[: len(flat) - 100]

  def step(stream, block):
    stream, spectrum = stream.read(block)
    stream, out = stream.write(spectrum)
    return stream, (spectrum, out)

  _, (found, out) = jax.jit(
    lambda b: jax.lax.scan(step, stft.Stream.start(), b)
  )(jnp.asarray(blocks))
  np.testing.assert_allclose(found, spectra, atol=1e-4)
  late = np.asarray(out).reshape(-1)[512 : 512 + len(x)]
  np.testing.assert_allclose(late, whole, atol=1e-5)


def test_a_signal_shorter_than_a_frame_is_refused_without_padding():
  with pytest.raises(ValueError, match=r"512 samples.* padding 100"):
    stft.analyse(np.zeros(100), padding=0)
