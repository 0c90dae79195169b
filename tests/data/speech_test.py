import pathlib

import datasets
import numpy as np
import pytest
import soundfile

from quantlab.data import sound, speech, synthetic_speech

_RECORDINGS = pathlib.Path(__file__).parents[2].parent / "shared/data/valentini"


def _file(path, samples, rate=16_000, value=0.25):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, np.full(samples, value), rate, "PCM_16")


def test_an_utterance_has_harmonics_formants_and_pauses():
  x = synthetic_speech.utterance(np.random.default_rng(3), seconds=2)
  assert x.shape == (32_000,)
  frames = x[: 32_000 // 400 * 400].reshape(-1, 400)
  loudness = 10 * np.log10(np.mean(frames**2, axis=1))
  assert loudness.max() - loudness.min() > 40  # dB: words and pauses
  loud = frames[loudness > loudness.max() - 10]
  spectrum = np.mean(np.abs(np.fft.rfft(loud, axis=1)) ** 2, axis=0)
  low, high = spectrum[:100].sum(), spectrum[150:].sum()  # 4 kHz, 6 kHz
  assert low > 30 * high
  again = synthetic_speech.utterance(np.random.default_rng(3), seconds=2)
  np.testing.assert_array_equal(x, again)


def test_synthetic_noise_has_unit_power_and_a_colour():
  x = synthetic_speech.noise(np.random.default_rng(1), 16_000)
  assert np.mean(x**2) == pytest.approx(1, rel=1e-4)
  spectrum = np.abs(np.fft.rfft(x)) ** 2
  assert spectrum[100:1000].mean() > 2 * spectrum[6000:].mean()


@pytest.mark.parametrize("function", ["utterance", "noise"])
def test_too_short_synthetic_sounds_are_refused(function):
  with pytest.raises(ValueError, match="must be at least"):
    getattr(synthetic_speech, function)(np.random.default_rng(0), 0)


def test_synthetic_pairs_have_the_ratios_of_the_corpus():
  task = speech.pairs(split="test", limit=2)
  for i, ratio in enumerate((2.5, 7.5)):
    noisy, clean = task.read(i)
    noise = noisy.astype(float) - clean
    found = 10 * np.log10(np.mean(clean.astype(float) ** 2) / np.mean(noise**2))
    assert found == pytest.approx(ratio, abs=1e-3)
  assert task.sha256 == speech.pairs(split="test", limit=2).sha256
  assert task.sha256 != speech.pairs(split="train", limit=2).sha256
  with pytest.raises(ValueError, match=r"no split 'dev' among \['train', 'te"):
    speech.pairs(split="dev")


def test_a_folder_of_two_is_read_in_the_order_of_names(tmp_path):
  for part in ("clean", "noisy"):
    _file(tmp_path / part / "b.wav", 30)
    _file(tmp_path / part / "a.wav", 960, rate=48_000)
  task = speech.pairs(str(tmp_path))
  assert task.names == ("a.wav", "b.wav")
  assert [x.shape for x in task.read(0)] == [(320,)] * 2
  assert len(speech.pairs(str(tmp_path), limit=1)) == 1


def test_a_split_is_a_folder_if_there_is_one(tmp_path):
  for part in ("clean", "noisy"):
    _file(tmp_path / "test" / part / "t.wav", 10)
    _file(tmp_path / part / "other.wav", 10)
  assert speech.pairs(str(tmp_path), split="test").names == ("t.wav",)
  assert speech.pairs(str(tmp_path), split="train").names == ("other.wav",)


def test_a_split_that_is_not_there_is_named(tmp_path):
  for part in ("clean", "noisy"):
    _file(tmp_path / "train" / part / "t.wav", 10)
  with pytest.raises(ValueError, match=r"no split 'test' among \['train'\]"):
    speech.pairs(str(tmp_path), split="test")


def test_what_is_read_again_is_the_same_and_cannot_be_changed():
  task = speech.pairs(limit=1)
  noisy, clean = task.read(0)
  assert task.read(0)[0] is noisy
  for signal in (noisy, clean):
    with pytest.raises(ValueError, match="read-only"):
      signal[0] = 1


def test_files_that_do_not_pair_are_named(tmp_path):
  _file(tmp_path / "clean" / "a.wav", 10)
  with pytest.raises(FileNotFoundError, match="noisy: no such folder"):
    speech.pairs(str(tmp_path))
  _file(tmp_path / "noisy" / "b.wav", 10)
  with pytest.raises(ValueError, match=r"2 files .* a\.wav, b\.wav"):
    speech.pairs(str(tmp_path))
  (tmp_path / "noisy" / "b.wav").unlink()
  with pytest.raises(ValueError, match="holds no file ending in"):
    speech.pairs(str(tmp_path))
  _file(tmp_path / "noisy" / "a.wav", 11)
  with pytest.raises(ValueError, match=r"a\.wav and .* have 11 and 10 samples"):
    speech.pairs(str(tmp_path))


def test_a_table_of_sounds_is_a_task_too(tmp_path):
  for part in ("clean", "noisy"):
    _file(tmp_path / f"{part}.wav", 40)
  rows = {
    part: [{"path": None, "bytes": (tmp_path / f"{part}.wav").read_bytes()}]
    for part in ("clean", "noisy")
  }
  sounds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
  features = datasets.Features(dict.fromkeys(rows, sounds))
  file = str(tmp_path / "pairs.parquet")
  datasets.Dataset.from_dict(rows, features).to_parquet(file)
  task = speech.pairs(file)
  np.testing.assert_array_equal(task.read(0)[0], np.full(40, 0.25))
  with pytest.raises(ValueError, match="no column 'loud' among"):
    speech.pairs(file, noisy="loud")


@pytest.mark.parametrize(
  ("entry", "problem"),
  [
    (1, "column 'noisy' holds no sounds: "),
    ({"bytes": b"", "path": None}, "row 0, column noisy: has no sound"),
    (b"junk", "row 0, column noisy: not read as sound"),
  ],
)
def test_a_table_without_sounds_is_refused(tmp_path, entry, problem):
  file = str(tmp_path / "pairs.parquet")
  rows = {"clean": [entry], "noisy": [entry]}
  datasets.Dataset.from_dict(rows).to_parquet(file)
  with pytest.raises(ValueError, match=problem):
    speech.pairs(file)


def test_crops_have_the_ratio_that_was_asked_for():
  task = speech.pairs(limit=3)
  arguments = {"count": 4, "samples": 8000, "seed": (1, 2)}
  noisy, clean = speech.crops(task, **arguments, snr=(5, 5), gain_db=0)
  assert noisy.shape == clean.shape == (4, 8000)
  noise = (noisy - clean).astype(float)
  power = np.mean(clean.astype(float) ** 2, axis=1)
  ratio = 10 * np.log10(power / np.mean(noise**2, axis=1))
  np.testing.assert_allclose(ratio, 5, atol=1e-3)
  same, _ = speech.crops(task, **arguments, snr=(5, 5), gain_db=0)
  np.testing.assert_array_equal(noisy, same)
  other, _ = speech.crops(task, **arguments | {"seed": 3})
  assert not np.array_equal(noisy, other)


def test_what_is_shorter_than_a_crop_ends_in_silence(tmp_path):
  for part, value in (("clean", 0.25), ("noisy", 0.5)):
    _file(tmp_path / part / "a.wav", 600, value=value)
  task = speech.pairs(str(tmp_path))
  noisy, clean = speech.crops(
    task, count=2, samples=1000, seed=0, own=1.0, snr=(0, 0), gain_db=0
  )
  np.testing.assert_array_equal(clean[:, :600], 0.25)
  np.testing.assert_allclose(noisy[:, :600], 0.5, rtol=1e-6)
  assert not noisy[:, 600:].any()
  assert not clean[:, 600:].any()


@pytest.mark.skipif(not _RECORDINGS.exists(), reason="no recordings here")
def test_recordings_have_the_statistics_of_the_authors():
  from quantlab.models import stft

  frames = [
    np.abs(stft.analyse(sound.read(file, resample=True), padding=0))
    for file in speech.files(_RECORDINGS / "calibration")
  ]
  assert [len(x) for x in frames] == [524, 278, 396, 512]
  found = np.concatenate(frames)
  assert found.max() == pytest.approx(24.214, rel=5e-3)
  assert found.mean(1).mean() == pytest.approx(0.3130, rel=5e-3)
  assert found.std(1).mean() == pytest.approx(0.7431, rel=5e-3)
  assert found.std() == pytest.approx(0.9253, rel=5e-3)
