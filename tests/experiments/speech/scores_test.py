import importlib.util
import pathlib

import numpy as np
import pytest

from quantlab.data import speech, synthetic_speech
from quantlab.experiments.speech import scores as speech_scores

_RECORDINGS = pathlib.Path(__file__).parents[3].parent / "shared/data/valentini"

# Noisy beside clean, measured with pesq 0.0.4 and pystoi 0.4.1.
_GOLDEN = {
  "p232_050.wav": (1.652, 0.9110, 10.48),
  "p232_116.wav": (1.610, 0.9251, 6.01),
  "p232_170.wav": (1.287, 0.7200, 0.64),
  "p232_254.wav": (1.296, 0.9025, 1.32),
  "p232_334.wav": (2.109, 0.9789, 11.50),
}


@pytest.mark.skipif(not _RECORDINGS.exists(), reason="no recordings here")
@pytest.mark.parametrize(
  ("name", "column", "tolerance"),
  [("pesq", 0, 5e-3), ("stoi", 1, 1e-3), ("si_sdr", 2, 0.02)],
)
def test_recordings_score_as_measured(name, column, tolerance):
  if name != "si_sdr":
    pytest.importorskip({"pesq": "pesq", "stoi": "pystoi"}[name])
  task = speech.pairs(str(_RECORDINGS))
  for i, file in enumerate(task.names):
    noisy, clean = task.read(i)
    found = speech_scores.SCORES[name](noisy, clean)
    assert found == pytest.approx(_GOLDEN[file][column], abs=tolerance)


def test_the_ratio_does_not_see_scale_or_mean():
  rng = np.random.default_rng(0)
  clean, noise = rng.standard_normal((2, 1000))
  once = speech_scores.si_sdr(clean + 0.1 * noise, clean)
  assert speech_scores.si_sdr(7 * (clean + 0.1 * noise) - 3, clean + 5) == (
    pytest.approx(once, abs=1e-9)
  )
  assert once == pytest.approx(20, abs=0.7)


def test_silence_has_no_score():
  silence, tone = np.zeros(8000, np.float32), np.sin(np.arange(8000))
  assert np.isnan(speech_scores.si_sdr(silence, tone))
  assert np.isnan(speech_scores.si_sdr(tone, silence))
  assert speech_scores.si_sdr(tone, tone) > 200


@pytest.mark.parametrize("name", ["pesq", "stoi"])
def test_silent_or_short_speech_has_no_score(name):
  pytest.importorskip({"pesq": "pesq", "stoi": "pystoi"}[name])
  score = speech_scores.SCORES[name]
  silence = np.zeros(8000)
  speech = synthetic_speech.utterance(np.random.default_rng(0), 0.5)
  pairs = ((silence, speech), (speech, silence), (silence, silence))
  for estimate, clean in pairs:
    assert np.isnan(score(estimate, clean))
  assert np.isnan(score(speech[:2000], speech[:2000]))


@pytest.mark.parametrize("name", speech_scores.SCORES)
def test_signals_that_do_not_fit_are_refused(name):
  if name != "si_sdr":
    pytest.importorskip({"pesq": "pesq", "stoi": "pystoi"}[name])
  score, tone = speech_scores.SCORES[name], np.sin(np.arange(8000))
  with pytest.raises(ValueError, match=r"\(7999,\), clean.shape=\(8000,\)"):
    score(tone[1:], tone)
  with pytest.raises(ValueError, match="1 of 8000 samples of estimate are not"):
    score(np.where(np.arange(8000) == 5, np.nan, tone), tone)


def test_scores_that_cannot_be_had_are_named(monkeypatch):
  with pytest.raises(ValueError, match="no score 'psq'; did you mean 'pesq'"):
    speech_scores.check(["si_sdr", "psq"])
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  speech_scores.check(["si_sdr"])
  with pytest.raises(ValueError, match=r"'stoi' needs .* 'quantlab\[speech\]'"):
    speech_scores.check(["stoi"])
