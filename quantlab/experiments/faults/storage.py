"""Which stored part of which format a wrong bit hurts.

A small network without biases is trained on images; all that it stores is its
kernels, in one format after another. Bit errors then hit everything, one part
alone, or all but one part (`core.flips` lists the parts).

  trained/               the float kernels
  <format>/result.json   bits by part, errors: the format is finished
  report.json, storage.png

A config has the entries of `storage_settings.Settings`. A run that is killed
goes on at the next format.
"""

import functools
import logging
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import quantlab as ql
from quantlab.core import flips
from quantlab.data import images
from quantlab.experiments import (
  configs,
  programs,
  progress,
  report,
  train,
  workdir,
)
from quantlab.experiments.faults import (
  bit_errors,
  gap_errors,
  storage_report,
  storage_settings,
)

Array = jax.Array
PyTree = Any

_LOG = logging.getLogger(__name__)


class Network(nn.Module):
  """A perceptron with ReLUs and without biases.

  Attributes:
    widths: of the hidden layers.
    classes: of the outputs.
  """

  widths: tuple[int, ...]
  classes: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Logits `[B, classes]` of images `[B, ...]`."""
    x = x.reshape(x.shape[0], -1)
    for i, width in enumerate(self.widths):
      x = nn.relu(nn.Dense(width, use_bias=False, name=f"hidden_{i}")(x))
    return nn.Dense(self.classes, use_bias=False, name="head")(x)


def run(config: Any, workdir_: str | os.PathLike[str]) -> dict[str, Any]:
  """Runs the study of a config, or what is left of it.

  Args:
    config: an `ml_collections.ConfigDict` or a dict; see `storage_settings`.
    workdir_: the folder for all results.

  Returns:
    Results by format; see `storage_report`.

  Raises:
    InputError: one line that says what is wrong with the config, the data or
      the folder.
  """
  config = configs.plain(config)
  settings, formats = storage_settings.read(config)
  folder = workdir.Workdir(workdir_)
  environment = report.environment()
  folder.begin({"config": config}, environment)
  with configs.explained():
    data = {
      split: images.images(settings.source, split=split)
      for split in ("train", settings.split)
    }
  folder.expect({split: each.sha256 for split, each in data.items()})
  study = _Study(settings, data, folder.root)
  results = {}
  with progress.bars() as track:
    for name in track([*formats], "formats"):
      programs.release()
      if folder.result(name) is None:
        found = study.judge(formats[name])
        folder.finish(name, found)
        _LOG.info("%s: error %.4f without wrong bits", name, found["clean"])
      results[name] = workdir.read_json(folder.root / name / "result.json")
  by_size = sorted(results.items(), key=lambda x: x[1]["bits_per_weight"])
  results = dict(by_size)
  about = {"config": config, "environment": environment}
  workdir.write_json(folder.root / "report.json", about | {"results": results})
  storage_report.picture(results, settings.at, folder.root / "storage.png")
  storage_report.show(results, settings.at)
  return results


class _Study:
  """The trained network, and how a format is judged."""

  def __init__(
    self, settings: storage_settings.Settings, data: Any, root: pathlib.Path
  ):
    self.settings = settings
    known, unseen = data["train"], data[settings.split]
    self.x, self.labels = unseen.pick(range(len(unseen)))
    self.model = Network(tuple(settings.widths), len(known.classes))
    fit = functools.partial(self._train, known)
    self.params = workdir.kept(root / "trained", fit)

  def _train(self, data: images.Images) -> PyTree:
    settings = self.settings
    variables = jax.jit(self.model.init)(
      jax.random.key(settings.seed), self.x[:1]
    )

    def batches(epoch):
      order = np.random.SeedSequence((settings.seed, epoch)).generate_state(1)
      return data.batches(
        settings.batch_size, shuffle_seed=int(order[0]), drop_remainder=True
      )

    optimizer = train.sgd(settings.steps, learning_rate=settings.learning_rate)
    variables = train.fit(
      self.model, variables, batches, optimizer, steps=settings.steps
    )
    return variables["params"]

  def judge(self, quantizer: ql.Quantizer) -> dict[str, Any]:
    """The result of a format."""
    params = ql.quantize(quantizer, self.params)
    whole = flips.parts(params)
    stored = {part: bits for part, bits in whole.items() if bits}
    function = self._function(params)
    measured = functools.partial(self._measure, function, params)
    each: dict[frozenset[str], Any] = {}  # two names may say the same
    exposed = {}
    for name, parts in exposures([*stored]).items():
      if parts not in each:
        guard = tuple(part for part in whole if part not in parts)
        each[parts] = measured(bit_errors.random(guard))
      exposed[name] = each[parts]
    found = {
      "bits_per_weight": ql.bits_per_weight(params),
      "parts": stored,
      "clean": exposed["all"]["clean"],
      "weight_error": _distance(_flat(self.params), _flat(params)).item(),
      "exposed": exposed,
    }
    if gap_errors.restreamed(params, 1):
      found["gaps"] = self._gaps(params, measured)
    return found

  def _function(self, params: PyTree) -> Any:
    clean = _flat(params)

    def function(params):
      floats = ql.dequantize(params)
      logits: Any = self.model.apply({"params": floats}, self.x)
      return bit_errors.classes(logits), _distance(clean, _flat(floats))

    return function

  def _measure(
    self, function: Any, params: PyTree, damage: bit_errors.Damage
  ) -> dict[str, Any]:
    settings = self.settings
    seeds = range(100, 100 + settings.patterns)
    clean, found = bit_errors.under(
      damage, function, params, settings.rates, seeds
    )
    scores = bit_errors.robustness(
      clean[0], found[0], self.labels, settings.rates
    )
    rows = zip(settings.rates, np.median(found[1], axis=1), strict=True)
    return {
      "clean": scores.clean,
      "weight_error": {str(rate): float(x) for rate, x in rows},
      **{name: _plain(getattr(scores, name), settings.rates) for name in _WAYS},
    }

  def _gaps(self, params: PyTree, measured: Any) -> list[dict[str, Any]]:
    """Single errors, and errors of the index alone, by remedy."""
    weights = sum(x.size for x in jax.tree.leaves(self.params))
    found = []
    for rows, copies in self.settings.remedies:
      each = gap_errors.restreamed(params, rows).values()
      reach = gap_errors.mean_reach([*each], samples=self.settings.samples)
      bits = copies * sum(coded.nbits for coded in each)
      found.append(
        {
          "rows": rows,
          "copies": copies,
          "bits_per_weight": bits / weights,
          **reach,
          "index": measured(gap_errors.damage(params, rows, copies)),
        }
      )
    return found


_WAYS = ("alone", "either")


def exposures(parts: list[str]) -> dict[str, frozenset[str]]:
  """Which parts have bit errors, by a name for it.

  Example:
    >>> [*exposures(["codes", "grid"])]
    ['all', 'only codes', 'all but codes', 'only grid', 'all but grid']
  """
  every = frozenset(parts)
  found = {"all": every}
  for part in parts if len(parts) > 1 else ():
    found |= {f"only {part}": every & {part}, f"all but {part}": every - {part}}
  return found


def _plain(spread: bit_errors.Spread, rates: list[float]) -> dict[str, Any]:
  rows = zip(rates, zip(*spread, strict=True), strict=True)
  return {
    str(rate): dict(zip(spread._fields, map(float, row), strict=True))
    for rate, row in rows
  }


def _flat(params: PyTree) -> Array:
  leaves = jax.tree.leaves(ql.dequantize(params))
  return jnp.concatenate([leaf.ravel() for leaf in leaves])


def _distance(clean: Array, other: Array) -> Array:
  """Norm of the difference over the norm; infinite where not finite."""
  # Wrong exponents give numbers whose squares are no floats, nor the inverse of
  # the largest of them.
  error = jnp.abs(other - clean)
  unit = jnp.clip(jnp.max(error), 1e-30, 1e30)
  found = unit * (jnp.linalg.norm(error / unit) / jnp.linalg.norm(clean))
  return jnp.where(jnp.isfinite(found), found, jnp.inf)
