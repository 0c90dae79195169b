"""Speech enhancement with a TinyDenoiser, as it runs: frame after frame.

The model is one that `launch.qat` trained. It reads whole utterances with its
state carried along, and so do calibrations; each activation is that of one
frame. Masks are compared with those of the float model, and what they make of
the noisy speech with the clean.

Shape letters: R utterances, B utterances of a batch, T frames, F bins.
"""

from collections.abc import Iterator
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.data import sound, speech
from quantlab.experiments import configs, progress, schemes
from quantlab.experiments.qat import speech as training
from quantlab.experiments.speech import scores as speech_scores
from quantlab.experiments.tasks import base
from quantlab.models import denoiser, stft


@dataclasses.dataclass(frozen=True)
class Model:
  """The section `model`.

  Attributes:
    path: the folder of a float model, such as `runs/denoiser-gru128/float`.
  """

  path: str

  def restore(self) -> Any:
    """Its parameters."""
    try:
      return schemes.restore(self.path).params
    except configs.InputError as error:
      raise configs.InputError(
        f"{error}; launch.qat makes one with configs/rnn/denoiser_gru.py or "
        "denoiser_lstm.py"
      ) from error


@dataclasses.dataclass(frozen=True)
class Data:
  """The section `data`.

  Attributes:
    source: as `data.speech.pairs` takes it, like what follows.
    split: what is evaluated.
    train: the split of calibrations.
    clean: folder or column of the clean speech.
    noisy: folder or column of the same speech with noise.
    limit: utterances to evaluate.
    calibration: a folder of noisy sound files to calibrate on instead of
      `train`.
    batch_size: utterances that the model reads at once.
    scores: of the enhanced speech, names of `experiments.speech.scores.SCORES`.
  """

  source: str = "synthetic"
  split: str = "test"
  train: str = "train"
  clean: str = "clean"
  noisy: str = "noisy"
  limit: int | None = None
  calibration: str | None = None
  batch_size: int = 8
  scores: tuple[str, ...] = ("si_sdr",)

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")
    speech_scores.check(self.scores)

  def pairs(self, split: str, limit: int | None = None) -> speech.Pairs:
    """Opens a split."""
    return speech.pairs(
      self.source, split=split, clean=self.clean, noisy=self.noisy, limit=limit
    )


class Batches:
  """The utterances of a task, with silence after those that end early."""

  def __init__(self, spectra: list[np.ndarray], size: int):
    self.spectra, self.size = spectra, min(size, len(spectra))
    self.longest = max(map(len, spectra))

  def __len__(self) -> int:
    return -(-len(self.spectra) // self.size)

  def __iter__(self) -> Iterator[base.Batch]:
    for i in range(0, len(self.spectra), self.size):
      chosen = self.spectra[i : i + self.size]
      x = np.zeros((self.size, self.longest, stft.BINS), np.float32)
      for row, spectrum in enumerate(chosen):
        x[row, : len(spectrum)] = np.abs(spectrum)
      yield base.Batch((x,), np.arange(i, i + len(chosen)))


def outline(model: Model, data: Data) -> base.Outline:
  """Reads the checkpoint, whose shapes say what the model is."""
  params = model.restore()
  frames = jax.ShapeDtypeStruct((data.batch_size, 8, stft.BINS), jnp.float32)
  return base.Outline(
    _network(params), jax.eval_shape(lambda: params), (frames,)
  )


def load(
  model: Model, data: Data, place: pathlib.Path, track: progress.Track
) -> base.Task:
  """Restores the model and opens the speech.

  Raises:
    ValueError: what the files or the data do not offer.
  """
  del place, track
  params = model.restore()
  network, pairs = _network(params), data.pairs(data.split, data.limit)
  signals = [pairs.read(i) for i in range(len(pairs))]
  spectra = [stft.analyse(noisy).astype(np.complex64) for noisy, _ in signals]
  return base.Task(
    model=network,
    params=params,
    head=lambda y, x: y,
    batches=Batches(spectra, data.batch_size),
    compare=functools.partial(
      compare, data.scores, spectra, [clean for _, clean in signals]
    ),
    loss=functools.partial(_loss, network),
    spare=functools.partial(_spare, data),
    sha256=pairs.sha256,
    source=pairs.source,
  )


def _network(params: Any) -> denoiser.TinyDenoiser:
  return denoiser.of_params(params).clone(by_frame=True)


def compare(
  scores: tuple[str, ...],
  spectra: list[np.ndarray],
  clean: list[np.ndarray],
  found: np.ndarray,
  reference: np.ndarray,
) -> dict[str, float]:
  """Scores masks, and the speech that they make of noisy speech.

  Args:
    scores: names of `experiments.speech.scores.SCORES`.
    spectra: of each noisy utterance, `[T, F]` complex.
    clean: the samples of each clean one.
    found: `[R, T, F]` masks, of the longest T.
    reference: `[R, T, F]`, of the float model.

  Returns:
    `mask_rmse`, the mean over utterances of the root mean square difference of
    the masks, and the mean of each score over utterances that have it: a
    silent one has none.
  """
  rows: dict[str, list[float]] = {"mask_rmse": []} | {s: [] for s in scores}
  for i, (spectrum, wanted) in enumerate(zip(spectra, clean, strict=True)):
    masks = found[i, : len(spectrum)]
    error = masks - reference[i, : len(spectrum)]
    rows["mask_rmse"].append(float(np.sqrt(np.mean(error**2))))
    enhanced = stft.synthesise(spectrum * masks, len(wanted))
    for name in scores:
      rows[name].append(speech_scores.SCORES[name](enhanced, wanted))
  return {name: _mean(values) for name, values in rows.items()}


def _mean(values: list[float]) -> float:
  known = [value for value in values if not np.isnan(value)]
  return float(np.mean(known)) if known else float("nan")


def _loss(
  network: denoiser.TinyDenoiser, params: base.Params, batch: base.Batch
) -> jax.Array:
  masks: Any = network.apply({"params": params}, *batch.args)
  return jnp.mean(training.compressed(masks, batch.labels))


def _spare(data: Data, count: int) -> list[base.Batch]:
  """Utterances for calibration, each a batch, without silence around it."""
  if data.calibration is not None:
    files = speech.files(data.calibration)
    signals = [sound.read(f, resample=True) for f in files]
    signals = [(noisy, None) for noisy in signals]
  else:
    pairs = data.pairs(data.train)
    signals = [pairs.read(i) for i in range(min(count, len(pairs)))]
  if len(signals) < count:
    raise ValueError(
      f"{count} batches for calibration take as many utterances, but "
      f"{data.calibration or data.source} has {len(signals)}"
    )

  def magnitudes(signal):
    return np.abs(stft.analyse(signal, padding=0)).astype(np.float32)[None]

  return [
    base.Batch(
      (magnitudes(noisy),),
      np.arange(1),
      ()
      if clean is None
      else np.stack([magnitudes(noisy), magnitudes(clean)], axis=-1),
    )
    for noisy, clean in signals[:count]
  ]


KIND = base.Kind(
  model=Model,
  data=Data,
  outline=outline,
  load=load,
  metrics=(
    base.Metric(
      "mask_rmse",
      "mask\nRMSE",
      "{:.5f}",
      axis="RMSE of the mask against float",
      falls=True,
    ),
    base.Metric("pesq", "PESQ", "{:.3f}", axis="PESQ (wide band)"),
    base.Metric("stoi", "STOI", "{:.4f}"),
    base.Metric("si_sdr", "SI-SDR\ndB", "{:.2f}"),
  ),
)
"""The metrics are all there may be; a config says which scores it wants."""
