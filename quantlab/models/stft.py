"""Short-time Fourier transform, of whole signals and of streams.

The convention: 16 kHz; a periodic Hann window of 400 samples (25 ms) lies in
the middle of 512, 56 zeros on either side; a frame starts at each multiple of
100 samples (6.25 ms). The same window is used for the synthesis, whose sum is
divided by that of the squared windows. So the window's delay is all there is:
412 samples (25.75 ms).

Magnitudes are neither compressed nor normalised.

Shape letters: S samples, T frames, F bins.

References:
  Rusci et al., arXiv 2210.07692: window, hop and size of the transform. That
  the window lies in the middle is reconstruction: it gives the statistics of
  their calibration files.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

SIZE, WINDOW, HOP = 512, 400, 100
BINS = SIZE // 2 + 1
DELAY = SIZE - HOP
"""Samples by which the output of a stream is behind its input."""

_EDGE = (SIZE - WINDOW) // 2
_HANN = np.pad(
  0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW), _EDGE
)
# Squared windows at every hop add up to this, everywhere but at the ends.
_GAIN = float(np.sum(_HANN**2) / HOP)


def analyse(signal: np.ndarray, *, padding: int = SIZE) -> np.ndarray:
  """The spectra of a signal's frames.

  Args:
    signal: `[..., S]` float.
    padding: zeros before and after it. With 512 every sample is in as many
      frames as any other, and `synthesise` gives the signal back.

  Returns:
    `[..., T, F]` complex, of `1 + (S + 2*padding - 512) // 100` frames, in the
    precision of the signal.

  Raises:
    ValueError: the signal is shorter than a frame.
  """
  sides = [(0, 0)] * (signal.ndim - 1) + [(padding, padding)]
  padded = np.pad(signal, sides)
  if padded.shape[-1] < SIZE:
    raise ValueError(
      f"a frame has {SIZE} samples, the signal with its padding "
      f"{padded.shape[-1]}"
    )
  frames = np.lib.stride_tricks.sliding_window_view(padded, SIZE, axis=-1)
  return np.fft.rfft(frames[..., ::HOP, :] * _HANN.astype(signal.dtype))


def synthesise(spectra: np.ndarray, samples: int) -> np.ndarray:
  """The signal of frames that `analyse` took with 512 zeros of padding.

  Args:
    spectra: `[..., T, F]` complex.
    samples: S, of the signal.

  Returns:
    `[..., S]` float.

  Example:
    >>> x = np.random.default_rng(0).normal(size=1000)
    >>> bool(np.allclose(synthesise(analyse(x), 1000), x, atol=1e-12))
    True
  """
  frames = np.fft.irfft(spectra, SIZE) * _HANN / _GAIN
  count = frames.shape[-2]
  out = np.zeros((*frames.shape[:-2], (count + SIZE // HOP + 1) * HOP))
  for i in range(count):
    out[..., i * HOP : i * HOP + SIZE] += frames[..., i, :]
  return out[..., SIZE : SIZE + samples]


class Stream(NamedTuple):
  """What a stream keeps from block to block.

  Attributes:
    past: `[..., 412]`, the last samples of the input.
    sums: `[..., 412]`, samples of the output that further frames add to.
  """

  past: Array
  sums: Array

  @classmethod
  def start(cls, *batch: int) -> "Stream":
    """Before the first block: silence."""
    return cls(*(jnp.zeros((*batch, DELAY)),) * 2)

  def read(self, block: Array) -> tuple["Stream", Array]:
    """The spectrum `[..., F]` of the frame that ends in a block `[..., 100]`.

    Blocks of a signal that begins with 100 zeros have the frames of `analyse`.
    """
    frame = jnp.concatenate([self.past, block], axis=-1)
    spectrum: Any = jnp.fft.rfft(frame * jnp.asarray(_HANN, frame.dtype))
    return self._replace(past=frame[..., HOP:]), spectrum

  def write(self, spectrum: Array) -> tuple["Stream", Array]:
    """Adds a frame, and returns the block `[..., 100]` that is complete.

    It is where the input was 412 samples ago.
    """
    scale = jnp.asarray(_HANN / _GAIN, self.sums.dtype)
    frame = jnp.fft.irfft(spectrum, SIZE) * scale
    room = [(0, 0)] * (self.sums.ndim - 1) + [(0, HOP)]
    sums = jnp.pad(self.sums, room) + frame
    return self._replace(sums=sums[..., HOP:]), sums[..., :HOP]
