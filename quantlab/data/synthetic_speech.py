"""Speech made by rule, so that nothing has to be downloaded.

A source-filter synthesizer: glottal pulses or noise pass through resonators,
whose frequencies glide from one speech sound to the next. What comes out has
what denoisers live on (harmonics of a moving pitch, formants, fricatives,
pauses) but says nothing and sounds like nobody. It is for tests, for demos and
for orderings between quantizers; scores of speech quality or intelligibility
on it mean nothing.

Shape letters: n samples, T frames of 10 ms, F formants, S bins of spectra.

References:
  The model: G. Fant, Acoustic Theory of Speech Production, 1960. Formants of
  the vowels: Peterson and Barney, Control Methods Used in a Study of the
  Vowels, JASA 24, 1952, Table II, men. Pulses: A. Rosenberg, Effect of Glottal
  Pulse Shape on the Quality of Natural Vowels, JASA 49, 1971. Resonators:
  D. Klatt, Software for a Cascade/Parallel Formant Synthesizer, JASA 67, 1980.
  Consonants, rhythm and pitch are ours.
"""

from typing import NamedTuple

import numpy as np

from quantlab.data import sound

_FRAME = 160  # samples
_SECOND = sound.RATE // _FRAME  # frames
_SPECTRUM = 1024  # two frames, and 44 ms in which resonators decay by 70 dB
_SHORTEST = 0.3  # seconds: the first vowel has begun

# The first three formants of a man, in Hz.
_VOWELS = np.array(
  [
    (270, 2290, 3010),  # heed
    (390, 1990, 2550),  # hid
    (530, 1840, 2480),  # head
    (660, 1720, 2410),  # had
    (730, 1090, 2440),  # hod
    (570, 840, 2410),  # hawed
    (440, 1020, 2240),  # hood
    (300, 870, 2240),  # who'd
    (640, 1190, 2390),  # hud
    (490, 1350, 1690),  # heard
  ],
  float,
)
_NASAL = np.array([250.0, 1200.0, 2200.0])
# Higher ones hardly move: those of a tube of 17 cm, open at one end.
_HIGHER = np.array([3500.0, 4500.0, 5500.0])
_WIDTHS = np.array([60.0, 90.0, 130.0, 200.0, 300.0, 400.0])


class _Sound(NamedTuple):
  """A consonant: levels of voice and noise, and the noise's band in Hz."""

  voice: float
  noise: float
  centre: float
  width: float
  seconds: float


_FRICATIVES = (
  _Sound(0.0, 0.40, 6000, 1500, 0.11),  # s
  _Sound(0.0, 0.40, 3200, 1000, 0.11),  # sh
  _Sound(0.0, 0.10, 4500, 4000, 0.09),  # f
  _Sound(0.3, 0.15, 6000, 1500, 0.08),  # z
  _Sound(0.3, 0.06, 4500, 4000, 0.07),  # v
)
_BURSTS = (
  _Sound(0.0, 0.25, 800, 600, 0.015),  # p
  _Sound(0.0, 0.40, 4000, 2000, 0.020),  # t
  _Sound(0.0, 0.35, 1800, 800, 0.025),  # k
)
_HUM = _Sound(0.35, 0.0, 1000, 1000, 0.08)  # m, n
_SILENCE = _Sound(0.0, 0.0, 1000, 1000, 0.06)


def utterance(rng: np.random.Generator, seconds: float = 3.0) -> np.ndarray:
  """Makes an utterance of a speaker who is drawn too.

  Args:
    rng: source of all that is random.
    seconds: length, at least 0.3.

  Returns:
    `[n]` float32 at 16 kHz with a peak of 0.5.

  Raises:
    ValueError: shorter than that.

  Example:
    >>> x = utterance(np.random.default_rng(0), seconds=0.5)
    >>> x.shape, x.dtype.name, abs(x).max().item()
    ((8000,), 'float32', 0.5)
  """
  if not seconds >= _SHORTEST:
    raise ValueError(f"{seconds=} must be at least {_SHORTEST}")
  samples = round(seconds * sound.RATE)
  frames = -(-samples // _FRAME)
  pitch = 130 * 2 ** rng.uniform(-0.6, 0.85)  # 86 to 234 Hz
  # Women's formants are about 17 % higher, their pitch 70 %.
  tract = (pitch / 130) ** 0.3 * rng.uniform(0.95, 1.05)
  formants, voice, noise, bands = _score(rng, frames)
  higher = np.tile(_HIGHER, (frames, 1))
  formants = tract * np.concatenate([formants, higher], axis=1)
  source = _pulses(rng, _melody(rng, frames, pitch)) * _per_sample(voice)
  voiced = _filtered(source, _resonators(formants))
  voiced /= np.sqrt(np.mean(voiced**2))
  hiss = rng.standard_normal(frames * _FRAME) * _per_sample(noise)
  x = (voiced + _filtered(hiss, _band(*bands.T)))[:samples]
  x += 1e-4 * rng.standard_normal(samples)  # no room is quite silent
  return (x * (0.5 / np.abs(x).max())).astype(np.float32)


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
  """Makes noise of a random colour whose loudness changes slowly.

  Args:
    rng: source of all that is random.
    samples: n, at least 1.

  Returns:
    `[n]` float32 with a mean square of 1. The spectrum falls by 0 to 9 dB per
    octave above 60 Hz, and has three broad bands of -10 to 10 dB; the level
    goes up and down by up to 6 dB (one standard deviation) 1 to 5 times per
    second.

  Raises:
    ValueError: `samples` is less than 1.

  Example:
    >>> x = noise(np.random.default_rng(0), 16_000)
    >>> x.shape, round(float((x**2).mean()), 3)
    ((16000,), 1.0)
  """
  if samples < 1:
    raise ValueError(f"{samples=} must be at least 1")
  octaves = np.fft.rfftfreq(samples, 1 / sound.RATE)
  octaves = np.log2(np.maximum(octaves, 60.0) / 60)
  level = -rng.uniform(0, 9) * octaves
  for _ in range(3):
    centre, width = rng.uniform(0, octaves.max() + 1), rng.uniform(0.3, 1)
    shape = np.exp(-0.5 * ((octaves - centre) / width) ** 2)
    level += rng.uniform(-10, 10) * shape
  spectrum = np.fft.rfft(rng.standard_normal(samples)) * 10 ** (level / 20)
  x = np.fft.irfft(spectrum, samples)
  swing = _wander(rng, samples, rng.uniform(1, 5) * samples / sound.RATE)
  x *= 10 ** (rng.uniform(0, 6) * swing / 20)
  return (x / np.sqrt(np.mean(x**2))).astype(np.float32)


def _score(
  rng: np.random.Generator, frames: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Draws syllables.

  Returns:
    Formants `[T, 3]` in Hz, levels of voice and of noise, each `[T]`, and
    `[T, 2]` centre and width of the noise's band in Hz.
  """
  vowel = _VOWELS[rng.integers(len(_VOWELS))]
  formants, sounds = [vowel] * 4, [_SILENCE] * 4
  left = rng.integers(2, 6)  # syllables of this word

  def say(each: _Sound, targets: np.ndarray, seconds: float) -> None:
    count = max(round(seconds * _SECOND), 1)
    formants.extend([targets] * count)
    sounds.extend([each] * count)

  while len(sounds) < frames:
    vowel = _VOWELS[rng.integers(len(_VOWELS))]
    kind, pace = rng.integers(4), rng.uniform(0.75, 1.25)
    if kind == 0:
      onset = _FRICATIVES[rng.integers(len(_FRICATIVES))]
      say(onset, vowel, onset.seconds * pace)
    elif kind == 1:
      onset = _BURSTS[rng.integers(len(_BURSTS))]
      say(_SILENCE, vowel, _SILENCE.seconds * pace)
      say(onset, vowel, onset.seconds)
    elif kind == 2:
      say(_HUM, _NASAL, _HUM.seconds * pace)
    loud = _Sound(rng.uniform(0.6, 1.0), 0.01, 2500, 3000, 0)  # some breath
    say(loud, vowel, rng.uniform(0.08, 0.22))
    left -= 1
    if not left:
      left = rng.integers(2, 6)
      say(_SILENCE, vowel, rng.uniform(0.1, 0.35))
  track = np.array(sounds[:frames])
  tracks = np.apply_along_axis(_smooth, 0, np.array(formants[:frames]), 7)
  return tracks, _smooth(track[:, 0], 3), track[:, 1], track[:, 2:4]


def _melody(rng: np.random.Generator, frames: int, pitch: float) -> np.ndarray:
  """Pitch of each sample in Hz: it moves, and falls in the long run."""
  moves = _wander(rng, frames, 2.5 * frames / _SECOND)
  fall = np.linspace(0.1, -0.15, frames)
  return _per_sample(pitch * 2 ** (fall + 0.12 * moves))


def _pulses(rng: np.random.Generator, pitch: np.ndarray) -> np.ndarray:
  """Derivative of the glottal flow, `[n]`, whose period and level jitter."""
  period = np.cumsum(pitch / sound.RATE).astype(int)
  random = rng.standard_normal((2, period[-1] + 1))
  phase = np.cumsum(pitch * (1 + 0.01 * random[0, period]) / sound.RATE) % 1
  opening, closing = phase / 0.4, (phase - 0.4) / 0.16
  flow = np.where(
    opening < 1,
    opening**2 * (3 - 2 * opening),
    np.maximum(1 - closing**2, 0),
  )
  return np.diff(flow, prepend=0.0) * (1 + 0.05 * random[1, period])


def _resonators(formants: np.ndarray) -> np.ndarray:
  """Responses `[T, S]` of F resonators in a row, `[T, F]` Hz; 1 at 0 Hz."""
  radius = np.exp(-np.pi * _WIDTHS / sound.RATE)
  b = -2 * radius * np.cos(2 * np.pi * formants / sound.RATE)
  c = np.broadcast_to(radius**2, b.shape)
  response = np.ones((len(formants), _SPECTRUM // 2 + 1), np.complex64)
  for each in range(formants.shape[1]):
    poles = _polynomial(b[:, each], c[:, each])
    response *= poles[:, :1] / poles
  return response


def _band(centre: np.ndarray, width: np.ndarray) -> np.ndarray:
  """Responses `[T, S]` that are at most 1, of bands, each `[T]` in Hz."""
  radius = np.exp(-np.pi * width / sound.RATE)
  b = -2 * radius * np.cos(2 * np.pi * centre / sound.RATE)
  # Zeros at 0 Hz and at half the rate.
  zeros = _polynomial(np.zeros(1), -np.ones(1))
  gain = (1 - radius**2).astype(np.float32) / 2
  return gain[:, None] * zeros / _polynomial(b, radius**2)


def _polynomial(b: np.ndarray, c: np.ndarray) -> np.ndarray:
  """`1 + b / z + c / z**2` on the unit circle, `[T, S]`, of `[T]` numbers."""
  turn = np.exp(-2j * np.pi * np.fft.rfftfreq(_SPECTRUM)).astype(np.complex64)
  b, c = b[:, None].astype(np.float32), c[:, None].astype(np.float32)
  return 1 + turn * (b + turn * c)


def _filtered(x: np.ndarray, responses: np.ndarray) -> np.ndarray:
  """Filters `[n]` samples frame by frame; Hann windows blend neighbours.

  Recursive filters whose coefficients jump would click.
  """
  length = 2 * _FRAME
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
  x = np.pad(x, (_FRAME // 2, _FRAME + _FRAME // 2))
  frames = np.lib.stride_tricks.sliding_window_view(x, length)[::_FRAME]
  spectra = np.fft.rfft(frames[: len(responses)] * window, _SPECTRUM)
  pieces = np.fft.irfft(spectra * responses, _SPECTRUM)
  y = np.zeros(len(x) + _SPECTRUM)
  for t, piece in enumerate(pieces):
    y[t * _FRAME : t * _FRAME + _SPECTRUM] += piece
  return y[_FRAME // 2 :][: len(responses) * _FRAME]


def _smooth(track: np.ndarray, length: int) -> np.ndarray:
  """Averages `[T]` over a Hann window of an odd number of frames."""
  window = np.hanning(length + 2)[1:-1]
  padded = np.pad(track, length // 2, mode="edge")
  return np.convolve(padded, window / window.sum(), "valid")


def _wander(rng: np.random.Generator, count: int, turns: float) -> np.ndarray:
  """Straight lines between that many normal values, `[count]`."""
  ends = rng.standard_normal(max(round(turns), 1) + 1)
  return np.interp(np.linspace(0, len(ends) - 1, count), range(len(ends)), ends)


def _per_sample(track: np.ndarray) -> np.ndarray:
  """Straight lines between the `[T]` values in the middle of frames, `[n]`."""
  at = (np.arange(len(track) * _FRAME) + 0.5) / _FRAME - 0.5
  return np.interp(at, np.arange(len(track)), track)
