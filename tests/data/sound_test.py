import io

import numpy as np
import pytest
import scipy.signal
import soundfile

from quantlab.data import sound


def _wav(path, x, rate=16_000, subtype="PCM_16"):
  soundfile.write(path, x, rate, subtype)
  return path


def test_sixteen_bits_are_divided_by_their_largest_magnitude(tmp_path):
  codes = np.array([-32768, -1, 0, 1, 32767], np.int16)
  x = sound.read(_wav(tmp_path / "a.wav", codes))
  assert x.dtype == np.float32
  assert (x * 32768).tolist() == codes.tolist()


def test_what_is_written_is_read_back(tmp_path):
  x = np.linspace(-0.9, 0.9, 300, dtype=np.float32)
  sound.write(tmp_path / "a.wav", x)
  np.testing.assert_allclose(sound.read(tmp_path / "a.wav"), x, atol=2**-16)
  assert [f.name for f in tmp_path.iterdir()] == ["a.wav"]


def test_what_is_too_loud_is_clipped_and_counted(tmp_path, caplog):
  sound.write(tmp_path / "a.wav", np.array([-1.5, 0.5, 1.0]))
  assert (32768 * sound.read(tmp_path / "a.wav")).tolist() == [
    *(-32768, 16384, 32767)
  ]
  assert "2 of 3 samples are clipped" in caplog.text


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_another_rate_is_refused_or_resampled(tmp_path, rate):
  x = np.sin(2 * np.pi * 440 * np.arange(rate // 4) / rate)
  file = _wav(tmp_path / "a.wav", 0.5 * x, rate)
  with pytest.raises(ValueError, match=rf"a.wav: has {rate} .* not 16000"):
    sound.read(file)
  y = sound.read(file, resample=True)
  assert len(y) == 4000
  expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / 16_000)
  middle = slice(500, 3500)
  np.testing.assert_allclose(y[middle], expected[middle], atol=2e-3)


def test_resampling_is_that_of_scipy():
  x = np.random.default_rng(0).standard_normal(999)
  np.testing.assert_array_equal(
    sound.resampled(x, 48_000, 16_000), scipy.signal.resample_poly(x, 1, 3)
  )


def test_the_content_of_a_file_is_one_too(tmp_path):
  content = io.BytesIO()
  soundfile.write(content, np.full(8, 0.25), 16_000, "PCM_16", format="FLAC")
  assert sound.read(content.getvalue()).tolist() == [0.25] * 8


def test_what_is_no_sound_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none\.wav: no such file"):
    sound.read(tmp_path / "none.wav")
  whole = _wav(tmp_path / "whole.wav", np.zeros(100)).read_bytes()
  for name, content, problem in (
    ("text.wav", b"not a sound", "not read as sound"),
    ("empty.wav", b"", "not read as sound"),
    ("head.wav", whole[:40], "is cut off: 40 of 244 bytes"),
    ("cut.wav", whole[:-20], "is cut off: 224 of 244 bytes"),
  ):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: ({problem})"):
      sound.read(tmp_path / name)
  _wav(tmp_path / "two.wav", np.zeros((10, 2)))
  with pytest.raises(ValueError, match=r"two\.wav: has 2 channels"):
    sound.read(tmp_path / "two.wav")
  _wav(tmp_path / "nan.wav", np.array([0, np.nan]), subtype="FLOAT")
  with pytest.raises(ValueError, match=r"nan\.wav: 1 of 2 samples are not"):
    sound.read(tmp_path / "nan.wav")


def test_what_cannot_be_written_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="no folder"):
    sound.write(tmp_path / "no" / "a.wav", np.zeros(3))
  for x in (np.zeros((2, 3)), np.zeros(0), np.array([0, np.inf])):
    with pytest.raises(ValueError, match=r"a\.wav: "):
      sound.write(tmp_path / "a.wav", x)
  assert not list(tmp_path.iterdir())
