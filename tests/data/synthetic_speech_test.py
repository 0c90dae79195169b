import time

import numpy as np
import pytest

from quantlab.data import synthetic_speech


def _rng(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize("seconds", [0.3, 0.5, 1.2345])
def test_an_utterance_is_as_long_and_loud_as_said(seconds):
  for seed in range(5):
    x = synthetic_speech.utterance(_rng(seed), seconds)
    assert x.shape == (round(16_000 * seconds),)
    assert x.dtype == np.float32
    assert np.abs(x).max() == 0.5


def test_speakers_differ_and_seeds_repeat():
  first, again, other = (
    synthetic_speech.utterance(_rng(seed), 0.5) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1


def test_pulses_of_a_constant_pitch_are_lines_at_its_multiples():
  source = synthetic_speech._pulses(_rng(), np.full(16_000, 125.0))
  spectrum = np.abs(np.fft.rfft(source)) ** 2
  lines = spectrum[[*range(125, 1000, 125)]]
  between = spectrum[[*range(187, 1000, 125)]]
  assert lines.min() > 10 * between.max()


def test_resonators_peak_at_their_formants():
  formants = np.array([[500.0, 1500, 2500, 3500, 4500, 5500]])
  (response,) = np.abs(synthetic_speech._resonators(formants))
  inside = response[1:-1]
  peaks = np.flatnonzero((inside > response[:-2]) & (inside > response[2:])) + 1
  hertz = 16_000 / synthetic_speech._SPECTRUM
  # The wide ones above stand on the slope of the others, and lean.
  np.testing.assert_allclose(peaks[:4] * hertz, formants[0, :4], atol=hertz)
  assert len(peaks) == 6
  assert response[0] == pytest.approx(1)


def test_a_band_is_at_most_one_where_it_is():
  response = np.abs(
    synthetic_speech._band(np.array([3200.0]), np.array([1000.0]))
  )
  hertz = 16_000 / synthetic_speech._SPECTRUM
  assert response.argmax() * hertz == pytest.approx(3200, abs=100)
  assert response.max() == pytest.approx(1, rel=0.01)
  assert response[0, 0] == pytest.approx(0, abs=1e-6)


def test_a_filter_that_passes_all_changes_nothing():
  x = _rng().standard_normal(10 * synthetic_speech._FRAME)
  ones = np.ones((10, synthetic_speech._SPECTRUM // 2 + 1))
  y = synthetic_speech._filtered(x, ones)
  # Half a frame at either end has one window only.
  inside = slice(synthetic_speech._FRAME, -synthetic_speech._FRAME)
  np.testing.assert_allclose(y[inside], x[inside], atol=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 333, 16_000])
def test_noise_has_unit_power(samples):
  x = synthetic_speech.noise(_rng(samples), samples)
  assert x.shape == (samples,)
  assert np.mean(x.astype(float) ** 2) == pytest.approx(1, rel=1e-5)


def test_noises_differ_in_colour_and_swing():
  x = np.stack([synthetic_speech.noise(_rng(i), 16_000) for i in range(20)])
  spectrum = np.abs(np.fft.rfft(x)) ** 2
  tilt = np.log10(spectrum[:, 100:1000].mean(1) / spectrum[:, 4000:].mean(1))
  assert 10 * np.ptp(tilt) > 20  # dB
  loudness = np.log10(np.mean(x.reshape(20, 20, 800) ** 2, axis=2))
  swing = 10 * np.ptp(loudness, axis=1)
  assert swing.max() > 10
  assert swing.min() < 5


@pytest.mark.study
def test_three_seconds_take_less_than_fifty_milliseconds():
  synthetic_speech.utterance(_rng())
  start = time.perf_counter()
  for seed in range(10):
    synthetic_speech.utterance(_rng(seed))
  assert time.perf_counter() - start < 0.5
