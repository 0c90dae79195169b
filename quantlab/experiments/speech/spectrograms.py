"""Pictures of speech: spectrograms before and after, and the mask between.

Shape letters: S samples, T frames, F bins.
"""

import os

import numpy as np

from quantlab.data import sound
from quantlab.models import stft

_DEPTH = 80.0  # dB below the loudest that are shown.


def draw(
  noisy: np.ndarray,
  enhanced: np.ndarray,
  masks: np.ndarray,
  file: str | os.PathLike[str],
) -> None:
  """Draws three panels over one time axis.

  Args:
    noisy: `[S]`.
    enhanced: `[S]`.
    masks: `[T, F]`, of the frames of `stft.analyse`.
    file: where the picture goes; its ending says in which format.
  """
  import matplotlib.figure

  figure = matplotlib.figure.Figure((9, 8), layout="constrained", dpi=120)
  panels = figure.subplots(3, 1, sharex=True, sharey=True)
  before, after = (_decibels(x) for x in (noisy, enhanced))
  top = max(before.max(), after.max())
  levels = {"vmin": top - _DEPTH, "vmax": top, "cmap": "magma"}
  begin = -stft.DELAY / 2 / sound.RATE  # a frame is drawn at its middle
  half = stft.HOP / sound.RATE
  extent = (begin - half / 2, begin + (len(before) - 0.5) * half, 0, 8)
  shown = {"origin": "lower", "aspect": "auto", "extent": extent}
  for axes, title, values in zip(
    panels[:2], ("noisy", "enhanced"), (before, after), strict=True
  ):
    image = axes.imshow(values.T, **shown, **levels)
    axes.set_title(title, loc="left")
  figure.colorbar(image, ax=panels[:2], label="magnitude (dB)")
  mask = panels[2].imshow(masks.T, **shown, vmin=0, vmax=1, cmap="viridis")
  panels[2].set_title("mask", loc="left")
  figure.colorbar(mask, ax=panels[2], label="factor")
  panels[2].set_xlim(0, len(noisy) / sound.RATE)
  panels[2].set_xlabel("seconds")
  for axes in panels:
    axes.set_ylabel("kHz")
  figure.savefig(file)


def _decibels(signal: np.ndarray) -> np.ndarray:
  magnitudes = np.abs(stft.analyse(signal))
  return 20 * np.log10(np.maximum(magnitudes, 1e-10))
