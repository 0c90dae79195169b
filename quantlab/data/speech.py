"""Speech enhancement tasks: speech with noise, and the same without.

`"synthetic"` is speech made by rule, which needs no files; see
`quantlab.data.synthetic_speech`. The corpus of the papers is VoiceBank-DEMAND
(Valentini-Botinhao, 2017): as two folders of sound files, or from the hub as
`JacobLinCool/VoiceBank-DEMAND-16k`.

Shape letters: S samples, N pairs, B examples of a batch.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
import pathlib

import numpy as np

from quantlab.data import sound, synthetic_speech, tables

_ENDINGS = (".wav", ".flac")
_ALTERNATIVES = (
  "a folder of sound files with 'clean' and 'noisy' in it, or 'synthetic', "
  "which needs no files at all"
)
# Of synthetic speech: utterances of a split, and their dB of speech to noise,
# those of VoiceBank-DEMAND.
_SPLITS = {
  "train": (64, (0.0, 5.0, 10.0, 15.0)),
  "test": (16, (2.5, 7.5, 12.5, 17.5)),
}
_HASHED = 16  # Pairs in the hash: to read all of a corpus would take minutes.
_REMEMBERED = 256  # Pairs: small sets, of which each is read many times.


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Utterances with and without noise, read one at a time.

  Attributes:
    names: of the utterances.
    source: where they come from, for a report.
    sha256: of the names and 16 evenly spread pairs: equal hashes are the same
      task.
    read: `read(i) -> (noisy, clean)`, `[S]` float32 each, at 16 kHz. Raises
      `ValueError` where a file is damaged, or the two are not of one length.
  """

  names: tuple[str, ...]
  source: str
  sha256: str
  read: Callable[[int], tuple[np.ndarray, np.ndarray]] = dataclasses.field(
    repr=False
  )

  def __len__(self) -> int:
    return len(self.names)


def pairs(
  source: str = "synthetic",
  *,
  split: str = "train",
  clean: str = "clean",
  noisy: str = "noisy",
  limit: int | None = None,
) -> Pairs:
  """Loads a speech enhancement task from anywhere.

  Args:
    source: `"synthetic"`; a folder with a folder of clean and one of noisy
      files of the same names, of any rate; or a table of two columns of sounds,
      as `quantlab.data.tables.table` takes it.
    split: `"train"` (64) or `"test"` (16 utterances) of `"synthetic"`; of a
      folder, the folder in it that holds the two; where there is none of that
      name, all splits are the same files. Of a table, as there.
    clean: name of the folder or column of clean speech.
    noisy: name of the folder or column of speech with noise.
    limit: the first so many, which may be of one speaker; None takes all.

  Raises:
    FileNotFoundError: no such file, folder or hub id.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a split, folder, column or file is missing, or a file that is
      looked at is damaged.

  Example:
    >>> found = pairs(split="test", limit=2)
    >>> noisy, clean = found.read(0)
    >>> len(found), noisy.shape == clean.shape, noisy.dtype.name
    (2, True, 'float32')
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit={limit} must be at least 1")
  folder = pathlib.Path(source).expanduser()
  if source == "synthetic":
    names, read = _synthetic(split)
  elif (parts := _parts(folder, split, clean, noisy)) is not None:
    names, read = _folders(*parts)
  else:
    names, read = _table(source, split, clean, noisy)
  names = names[:limit]
  read = functools.lru_cache(maxsize=_REMEMBERED)(_constant(read))
  what = f"{source}, split {split}, {len(names)} utterances"
  return Pairs(tuple(names), what, _sha256(names, read), read)


def files(folder: str | pathlib.Path) -> list[pathlib.Path]:
  """The WAV and FLAC files of a folder, in the order of their names.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: none is in it.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder}: no such folder")
  found = [f for f in folder.iterdir() if f.suffix.lower() in _ENDINGS]
  if not found:
    raise ValueError(f"{folder}: holds no file ending in {_ENDINGS}")
  return sorted(found)


def crops(
  task: Pairs,
  *,
  count: int,
  samples: int,
  seed: int | Sequence[int],
  snr: tuple[float, float] = (-2.0, 15.0),
  gain_db: float = 6.0,
  own: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
  """Mixes speech and noise at random, for training.

  Args:
    task: where speech comes from.
    count: B.
    samples: S; what is shorter ends in silence.
    seed: equal seeds give equal examples.
    snr: dB of speech to noise, drawn evenly between the two. It holds for the
      crop, or for the whole utterance if the crop is a pause, 40 dB below it.
    gain_db: examples are louder or softer by up to so much.
    own: share of examples whose noise is the utterance's own; the others get
      `synthetic_speech.noise`, as do stretches without any of their own.

  Returns:
    Noisy and clean, `[B, S]` float32 each.
  """
  rng = np.random.default_rng(seed)
  out = np.zeros((2, count, samples), np.float32)
  for row in range(count):
    noisy, speech = task.read(int(rng.integers(len(task))))
    start = int(rng.integers(max(1, len(speech) - samples + 1)))
    at = slice(start, start + samples)
    noise, crop = (noisy - speech)[at], speech[at]
    if rng.random() >= own or not noise.any():
      noise = synthetic_speech.noise(rng, len(crop))
    level = _power(crop)
    if level < 1e-4 * _power(speech):  # a pause
      level = _power(speech)
    ratio = 10 ** (rng.uniform(*snr) / 10)
    noise = noise * np.sqrt(level / ratio / _power(noise))
    gain = 10 ** (rng.uniform(-gain_db, gain_db) / 20)
    out[0, row, : len(crop)] = gain * (crop + noise)
    out[1, row, : len(crop)] = gain * crop
  return out[0], out[1]


def _power(x: np.ndarray) -> float:
  return float(np.mean(np.square(x, dtype=np.float64)))


Read = Callable[[int], tuple[np.ndarray, np.ndarray]]


def _synthetic(split: str) -> tuple[list[str], Read]:
  if split not in _SPLITS:
    raise ValueError(f"synthetic: no split {split!r} among {[*_SPLITS]}")
  count, ratios = _SPLITS[split]
  key = [*_SPLITS].index(split)

  def read(i):
    rng = np.random.default_rng((key, i))
    clean = synthetic_speech.utterance(rng, seconds=float(rng.uniform(2, 4)))
    noise = synthetic_speech.noise(rng, len(clean))
    scale = np.sqrt(_power(clean) * 10 ** (-ratios[i % len(ratios)] / 10))
    return (clean + scale * noise).astype(np.float32), clean

  return [f"{split}-{i:03}" for i in range(count)], read


def _parts(
  folder: pathlib.Path, split: str, clean: str, noisy: str
) -> tuple[pathlib.Path, pathlib.Path] | None:
  """The folders of clean and noisy files, where there are any."""

  def holds(root: pathlib.Path) -> bool:
    return (root / clean).is_dir() or (root / noisy).is_dir()

  for root in (folder / split, folder):
    if holds(root):
      return root / clean, root / noisy
  splits = sorted(f.name for f in folder.glob("*/") if holds(f))
  if splits:
    raise ValueError(f"{folder}: no split {split!r} among {splits}")
  return None


def _folders(
  clean: pathlib.Path, noisy: pathlib.Path
) -> tuple[list[str], Read]:
  found = [{file.name: file for file in files(f)} for f in (noisy, clean)]
  alone = sorted(found[0].keys() ^ found[1].keys())
  if alone:
    raise ValueError(
      f"{len(alone)} files are in only one of {noisy} and {clean}: "
      f"{', '.join(alone[:3])}"
    )
  names = list(found[0])

  def read(i):
    places = [each[names[i]] for each in found]
    both = [sound.read(place, resample=True) for place in places]
    return _alike(f"{places[0]} and {places[1]}", *both)

  return names, read


def _table(
  source: str, split: str, clean: str, noisy: str
) -> tuple[list[str], Read]:
  import datasets

  rows = tables.table(source, split, alternatives=_ALTERNATIVES)
  columns = [tables.column(source, rows, name) for name in (noisy, clean)]
  rows = rows.select_columns(columns)
  for column in columns:  # what `datasets` would decode with needs PyTorch
    feature = rows.features[column]
    try:
      rows = rows.cast_column(column, datasets.Audio(decode=False))
    except (NotImplementedError, TypeError, ValueError):
      raise ValueError(
        f"{source}: column {column!r} holds no sounds: {feature}"
      ) from None

  def one(i, column):
    entry, name = rows[i][column], f"{source}: row {i}, column {column}"
    content = entry and (entry["bytes"] or entry["path"])
    if not content:
      raise ValueError(f"{name}: has no sound")
    return sound.read(content, name=name, resample=True)

  def read(i):
    both = [one(i, column) for column in columns]
    return _alike(f"{source}: row {i}, columns {columns}", *both)

  return [str(i) for i in range(len(rows))], read


def _constant(read: Read) -> Read:
  """What is remembered is shared: nobody may change it."""

  def constant(i):
    both = read(i)
    for signal in both:
      signal.flags.writeable = False
    return both

  return constant


def _alike(
  what: str, noisy: np.ndarray, clean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  if len(noisy) != len(clean):
    raise ValueError(
      f"{what}: have {len(noisy)} and {len(clean)} samples, and should have "
      "the same number"
    )
  return noisy, clean


def _sha256(names: Sequence[str], read: Read) -> str:
  digest = hashlib.sha256("\n".join(names).encode())
  last = len(names) - 1
  for i in sorted({round(x) for x in np.linspace(0, last, _HASHED)}):
    for signal in read(i):
      digest.update(signal.tobytes())
  return digest.hexdigest()
