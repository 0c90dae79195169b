"""How good enhanced speech is, beside the clean.

Signals are `[S]` samples at 16 kHz. Where a score says nothing it is NaN, so
that a network which mutes everything ends in a table and not in an error:
where one of the two is silent (constant), or too short for the score. Signals
that are not finite, or not of one length, raise `ValueError`.
"""

from collections.abc import Callable, Iterable
import importlib.util
import math
import warnings

import numpy as np

from quantlab.data import sound
from quantlab.experiments import configs

Score = Callable[[np.ndarray, np.ndarray], float]
"""`score(estimate, clean)`; more is better."""


def si_sdr(estimate: np.ndarray, clean: np.ndarray) -> float:
  """Scale-invariant ratio of signal to distortion, in dB; means are removed.

  References:
    Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019, Equation 3.

  Example:
    >>> clean = np.array([1.0, -1.0, 1.0, -1.0])
    >>> round(si_sdr(3 * clean + [0.3, 0.3, -0.3, -0.3], clean), 6)
    20.0
  """
  estimate, clean = _signals(estimate, clean)
  if _silent(estimate, clean):
    return math.nan
  estimate, clean = (x - np.mean(x) for x in (estimate, clean))
  target = (estimate @ clean / (clean @ clean)) * clean
  noise = estimate - target
  with np.errstate(divide="ignore"):
    return float(10 * np.log10((target @ target) / (noise @ noise)))


def pesq(estimate: np.ndarray, clean: np.ndarray) -> float:
  """Wide-band PESQ (ITU-T P.862.2), 1.04 to 4.64.

  NaN also where it finds no speech, and below a quarter of a second.
  """
  import pesq as package

  estimate, clean = _signals(estimate, clean)
  if _silent(estimate, clean):
    return math.nan
  try:
    return float(package.pesq(sound.RATE, clean, estimate, "wb"))
  except (package.NoUtterancesError, package.BufferTooShortError):
    return math.nan


def stoi(estimate: np.ndarray, clean: np.ndarray) -> float:
  """Short-time objective intelligibility, at most 1.

  NaN also where less than 0.4 s is left without pauses.

  References:
    Taal et al., IEEE TASLP 19(7), 2011.
  """
  import pystoi

  estimate, clean = _signals(estimate, clean)
  if _silent(estimate, clean):
    return math.nan
  with warnings.catch_warnings():
    # It would return 1e-5 beside the warning, which is no score.
    warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
    try:
      return float(pystoi.stoi(clean, estimate, sound.RATE))
    except RuntimeWarning:
      return math.nan


SCORES: dict[str, Score] = {"pesq": pesq, "stoi": stoi, "si_sdr": si_sdr}
_PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}


def check(names: Iterable[str]) -> None:
  """Refuses scores that are not known, or whose package is missing.

  Raises:
    ValueError: names the score, and what to install.
  """
  for name in names:
    if name not in SCORES:
      raise configs.unknown("scores", f"no score {name!r}", name, SCORES)
    package = _PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
      raise ValueError(
        f"the score {name!r} needs the package {package}: "
        "pip install 'quantlab[speech]'"
      )


def _signals(
  estimate: np.ndarray, clean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  estimate, clean = (np.asarray(x, np.float64) for x in (estimate, clean))
  if estimate.ndim != 1 or estimate.shape != clean.shape or not clean.size:
    raise ValueError(
      f"signals are [S] samples, as many of both: {estimate.shape=}, "
      f"{clean.shape=}"
    )
  for name, x in (("estimate", estimate), ("clean", clean)):
    if not np.isfinite(x).all():
      wrong = np.count_nonzero(~np.isfinite(x))
      raise ValueError(f"{wrong} of {x.size} samples of {name} are not finite")
  return estimate, clean


def _silent(*signals: np.ndarray) -> bool:
  return any(np.ptp(x) == 0 for x in signals)
