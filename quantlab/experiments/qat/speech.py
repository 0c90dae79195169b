"""Speech enhancement as a task: noisy magnitudes in, masks out.

Shape letters: B batch, T frames, F bins.
"""

from collections.abc import Iterable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.data import sound, speech
from quantlab.experiments import train
from quantlab.experiments.qat import tasks
from quantlab.models import denoiser, recurrent, stft

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Speech:
  """The section `data` of denoisers.

  Attributes:
    source: as `data.speech.pairs` takes it, like what follows.
    train: the split to train on.
    split: the split to evaluate.
    clean: folder or column of the clean speech.
    noisy: folder or column of the same speech with noise.
    limit: utterances of the split that is evaluated.
    seconds: of speech in an example.
    low: dB, the least ratio of speech to noise in training.
    high: dB, the largest.
    gain: dB by which examples are louder or softer than recorded, at most.
  """

  source: str = "synthetic"
  train: str = "train"
  split: str = "test"
  clean: str = "clean"
  noisy: str = "noisy"
  limit: int | None = None
  seconds: float = 1.0
  low: float = -2.0
  high: float = 15.0
  gain: float = 6.0

  def __post_init__(self):
    if self.seconds * sound.RATE < stft.SIZE:
      raise ValueError(f"seconds={self.seconds} is shorter than one frame")
    if not self.low <= self.high:
      raise ValueError(f"low={self.low} must be at most high={self.high}")

  def pairs(self, split: str, limit: int | None = None) -> speech.Pairs:
    """Opens a split."""
    return speech.pairs(
      self.source, split=split, clean=self.clean, noisy=self.noisy, limit=limit
    )


def denoise(
  data: Speech, *, cell: str = "lstm", features: int = 256
) -> tasks.Task:
  """A TinyDenoiser, to be trained on mixtures of speech and noise.

  Args:
    data: speech with and without noise.
    cell: "lstm" or "gru".
    features: units of each recurrent layer.

  Raises:
    ValueError: there is no such cell, or no unit; or as of `speech.pairs`.
  """
  if cell not in recurrent.LAYERS or features < 1:
    raise ValueError(
      f"a denoiser has cells of {', '.join(recurrent.LAYERS)} and at least one "
      f"unit, got {cell=} and {features=}"
    )
  trained, tested = data.pairs(data.train), data.pairs(data.split, data.limit)
  samples = round(data.seconds * sound.RATE)

  def batches(size, seed, epoch):
    for i in range(-(-len(trained) // size)):
      yield example(
        *speech.crops(
          trained,
          count=size,
          samples=samples,
          seed=(seed, epoch, i),
          snr=(data.low, data.high),
          gain_db=data.gain,
        )
      )

  def test(size):
    utterances = [tested.read(i) for i in range(len(tested))]
    longest = max(len(noisy) for noisy, _ in utterances)
    for i in range(0, len(utterances), size):
      yield example(
        *(
          np.stack([np.pad(x, (0, longest - len(x))) for x in signals])
          for signals in zip(*utterances[i : i + size], strict=True)
        )
      )

  return tasks.Task(
    denoiser.TinyDenoiser(cell, features),
    batches,
    test,
    compressed,
    _mean_loss,
    ("test_loss", False),
    f"{trained.source}; {tested.source}",
    trained.sha256 + tested.sha256,
  )


def example(noisy: np.ndarray, clean: np.ndarray) -> train.Batch:
  """Magnitudes `[B, T, F]` of noisy signals; labels `[B, T, F, 2]` of both."""
  magnitudes = [
    np.abs(stft.analyse(x)).astype(np.float32) for x in (noisy, clean)
  ]
  return magnitudes[0], np.stack(magnitudes, axis=-1)


def compressed(masks: Array, labels: Array) -> Array:
  """The squared error of compressed magnitudes.

  `((m*|X| + 1e-3)^0.3 - (|S| + 1e-3)^0.3)^2`, the mean over frames and bins, so
  that what is soft counts as well.

  Args:
    masks: m, `[B, T, F]`.
    labels: |X| and |S|, `[B, T, F, 2]`.

  Returns:
    `[B]`.

  References:
    Reconstruction: the loss of arXiv 2210.07692 is not published.
  """
  found, wanted = (
    (x + 1e-3) ** 0.3 for x in (masks * labels[..., 0], labels[..., 1])
  )
  return jnp.mean((found - wanted) ** 2, axis=(1, 2))


def _mean_loss(
  pairs: Iterable[tuple[Array, np.ndarray]],
) -> dict[str, float]:
  """The loss of whole utterances, without the silence that fills batches."""
  total, frames = 0.0, 0
  for masks, labels in pairs:
    count = labels.shape[1]
    total += count * float(jnp.sum(compressed(masks, jnp.asarray(labels))))
    frames += int(np.sum(np.any(labels[..., 0] > 0, axis=-1)))
  return {"test_loss": total / frames}
