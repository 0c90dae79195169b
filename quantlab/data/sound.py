"""Sound files of one channel.

Shape letters: n samples.
"""

import io
import logging
import math
import os
import pathlib
from typing import TypeAlias

import numpy as np

File: TypeAlias = str | os.PathLike[str]

_LOG = logging.getLogger(__name__)

RATE = 16_000
"""Samples per second of wide-band speech, as all models here take it."""


def read(
  file: File | bytes,
  *,
  name: str | None = None,
  rate: int = RATE,
  resample: bool = False,
) -> np.ndarray:
  """Reads a sound file.

  Args:
    file: a path, or the content of a file; of any format that libsndfile
      knows, such as WAV, FLAC and Ogg.
    name: what errors call it; None takes the path.
    rate: samples per second of the result.
    resample: whether a file of another rate is resampled.

  Returns:
    `[n]` float32. Integers are divided by their largest magnitude (16 bits by
    32768), so that they are in [-1, 1]; resampling may overshoot it a little,
    and files of floats are taken as they are.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not a sound file, or damaged; has several channels, no samples,
      samples that are not finite, or another rate.
  """
  import soundfile

  if isinstance(file, bytes):
    name, content = name or "a sound", file
  else:
    name, content = name or os.fspath(file), _content(pathlib.Path(file))
  _check_whole(name, content)
  try:
    with soundfile.SoundFile(io.BytesIO(content)) as opened:
      channels, found = opened.channels, opened.samplerate
      if channels != 1:
        raise ValueError(f"{name}: has {channels} channels; sounds have one")
      x = opened.read(dtype="float64")
  except soundfile.LibsndfileError as error:
    raise ValueError(
      f"{name}: not read as sound: {error.error_string}"
    ) from None
  if not x.size:
    raise ValueError(f"{name}: has no samples")
  if not np.isfinite(x).all():
    wrong = np.count_nonzero(~np.isfinite(x))
    raise ValueError(f"{name}: {wrong} of {x.size} samples are not finite")
  if found != rate:
    if not resample:
      raise ValueError(
        f"{name}: has {found} samples per second, not {rate}; ask for it to "
        "be resampled (resample=True, --resample)"
      )
    x = resampled(x, found, rate)
  return x.astype(np.float32)


def resampled(x: np.ndarray, old: int, new: int) -> np.ndarray:
  """Changes the rate by a polyphase filter, `scipy.signal.resample_poly`.

  Args:
    x: `[n]` float.
    old: its samples per second.
    new: those of the result.

  Returns:
    `[ceil(n * new / old)]` float64.

  Example:
    >>> resampled(np.ones(480), 48_000, 16_000).shape
    (160,)
  """
  import scipy.signal

  divisor = math.gcd(old, new)
  x = np.asarray(x, np.float64)
  return scipy.signal.resample_poly(x, new // divisor, old // divisor)


def write(file: File, signal: np.ndarray, *, rate: int = RATE) -> None:
  """Writes a WAV file of 16 bits, whole or not at all.

  Args:
    file: path; its folder must be there.
    signal: `[n]` float. What is outside of [-1, 1) is clipped, and counted in
      the log.
    rate: samples per second.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: not one channel of finite samples.
  """
  import soundfile

  path, x = pathlib.Path(file), np.asarray(signal)
  if not path.parent.is_dir():
    raise FileNotFoundError(f"{path}: no folder {path.parent}")
  if x.ndim != 1 or not x.size:
    raise ValueError(f"{path}: a sound is [n] samples, got {x.shape}")
  if not np.isfinite(x).all():
    wrong = np.count_nonzero(~np.isfinite(x))
    raise ValueError(f"{path}: {wrong} of {x.size} samples are not finite")
  clipped = np.count_nonzero((x < -1) | (x >= 1))
  if clipped:
    _LOG.warning("%s: %d of %d samples are clipped", path, clipped, x.size)
  codes = np.rint(np.clip(x.astype(np.float64) * 32768, -32768, 32767))
  content = io.BytesIO()
  soundfile.write(content, codes.astype(np.int16), rate, "PCM_16", format="WAV")
  new = path.with_name(f".{path.name}.new")
  with open(new, "wb") as f:
    f.write(content.getvalue())
    f.flush()
    os.fsync(f.fileno())
  os.replace(new, path)


def _check_whole(name: str, content: bytes) -> None:
  """Refuses a WAV file without its end, which libsndfile reads as shorter."""
  said = int.from_bytes(content[4:8], "little")
  # Who writes to a pipe cannot know the size, and says the largest.
  if content[:4] == b"RIFF" and len(content) < said + 8 < 2**32:
    raise ValueError(
      f"{name}: is cut off: {len(content)} of {said + 8} bytes are there"
    )


def _content(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    raise FileNotFoundError(f"{path}: no such file") from None
  except OSError as error:
    raise ValueError(f"{path}: not read: {error.strerror}") from None
