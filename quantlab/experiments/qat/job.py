"""Quantization-aware training: trains the variants of a config and judges them.

  float/           the model that every variant starts from
  <variant>/       metrics.jsonl, tensorboard/, curves.png, and
    saves/<step>/  the training so far; the last two
    params/        checkpoint of the packed model
    acts/          learned or tracked state of activations, where there is any
    result.json    scores: the variant is finished

A run that is killed goes on at its last save, and ends with the same bits.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import logging
import os
import pathlib
import shutil
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import quantlab as ql
from quantlab import checkpoint
from quantlab.experiments import (
  configs,
  programs,
  progress,
  report,
  train,
  workdir,
)
from quantlab.experiments.qat import curves, logbook, settings

_LOG = logging.getLogger(__name__)
_FLOAT = "float"


class Stopped(Exception):
  """The run was asked to stop, and has saved what it had."""


def run(config: Any, workdir_: str | os.PathLike[str]) -> dict[str, Any]:
  """Runs the job of a config, or what is left of it.

  Args:
    config: an `ml_collections.ConfigDict` or a dict; see `settings`.
    workdir_: the folder for all results.

  Returns:
    Scores by variant, the float model's first.

  Raises:
    InputError: one line that says what is wrong with the config, the data or
      the folder.
    FloatingPointError: a loss that is not finite; says where it began.
    Stopped: SIGTERM came.
  """
  config = configs.plain(config)
  job = settings.read(config)
  folder = workdir.Workdir(workdir_)
  environment = report.environment()
  folder.begin({"config": config}, environment)
  folder.expect({"data": job.task.sha256})
  example = next(iter(job.task.batches(1, job.seed, 0)))[0]
  variables = jax.jit(job.task.model.init)(jax.random.key(job.seed), example)
  results = {}
  first = settings.Variant(_FLOAT, train.NOTHING, job.float)
  with progress.bars() as track, _stopping() as stop:
    for variant in [first, *job.variants]:
      programs.release()
      trained = _Run(job, variant, folder.root / variant.name, variables)
      results[variant.name], after = trained.finished(track, stop)
      if variant is first:
        variables = after
  about = {"config": config, "environment": environment}
  workdir.write_json(
    folder.root / "report.json",
    about | {"task": job.task.source, "results": results},
  )
  panels = {variant.name: variant.panel for variant in job.variants}
  curves.summary(folder.root, _FLOAT, panels, job.task.best[0])
  return results


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
  """A list that SIGTERM fills, so that a step can end before the run does."""
  came: list[int] = []

  def handler(number, frame):
    del frame
    came.append(number)

  try:
    before = signal.signal(signal.SIGTERM, handler)
  except ValueError:  # not in the main thread: nothing to catch
    yield came
    return
  try:
    yield came
  finally:
    signal.signal(signal.SIGTERM, before)


class _Run:
  """The training of one variant."""

  def __init__(
    self,
    job: settings.Settings,
    variant: settings.Variant,
    folder: pathlib.Path,
    variables: Any,
  ):
    self.job, self.variant, self.folder = job, variant, folder
    self.variables = variables
    self.task, self.steps = job.task, variant.steps
    self.rounded = jax.jit(functools.partial(train.rounded, variant.plans))
    self.model = train.quantized(self.task.model, variant.plans)

  def finished(
    self, track: progress.Track, stop: list[int]
  ) -> tuple[dict[str, Any], Any]:
    """The scores and the variables of the variant, trained if need be."""
    done = self.folder / "result.json"
    if done.exists():
      return workdir.read_json(done), workdir.restore(self.folder / "params")
    optimizer = self.steps.transformation()
    with configs.explained():
      training = self._start(optimizer)
    training = self._train(self._restored(training), optimizer, track, stop)
    scores = self._judge(training)
    best = self.task.best[0]
    curves.of_run(self.folder, best)
    workdir.write_json(done, scores)  # last: it says that all else is there
    _LOG.info("%s: %s %.4f", self.variant.name, best, scores[best])
    return scores, training.variables

  def _start(self, optimizer: Any) -> train.Training:
    batches = self.task.batches(self.steps.range_batch, self.job.seed, 0)
    return train.start(
      self.task.model,
      self.variables,
      optimizer,
      self.variant.plans,
      next(iter(batches)),
    )

  def _train(
    self,
    training: train.Training,
    optimizer: Any,
    track: progress.Track,
    stop: list[int],
  ) -> train.Training:
    steps, first = self.steps, int(training.step)
    update = train.step(
      self.task.model,
      optimizer,
      self.variant.plans,
      objective=self.task.objective,
      seed=self.job.seed,
    )
    epochs = functools.partial(
      self.task.batches, steps.batch_size, self.job.seed
    )
    stream = train.stream(epochs, first)
    training, lay = spread(training, steps.batch_size)
    todo = range(first, steps.steps)
    with logbook.opened(self.folder, first) as write:
      if first == 0:
        write(0, self._numbers(training))
      bar = track(todo, f"training {self.variant.name}")
      for i, batch in zip(bar, stream, strict=False):
        before, (training, seen) = training, update(training, *lay(batch))
        outputs = functools.partial(train.outputs, self.task.model, before)
        train.check(i, steps.steps, seen, batch, outputs)
        last = i + 1 == steps.steps
        if last or (i + 1) % steps.evaluate_every == 0:
          write(i + 1, {"loss": seen.loss} | self._numbers(training))
        if last or stop or (i + 1) % steps.save_every == 0:
          self._save(training)
        if stop:
          raise Stopped(
            f"{self.variant.name}: stopped and saved at step {i + 1} of "
            f"{steps.steps}; the same command goes on from there"
          )
    return training

  def _numbers(self, training: train.Training) -> dict[str, Any]:
    params = self.rounded(training)
    return self._scores(training, params) | ranges(training)

  def _scores(self, training: train.Training, params: Any) -> dict[str, float]:
    batches = self.task.test(self.steps.batch_size)
    return self.task.scores(
      (self.model(training, params, inputs), labels)
      for inputs, labels in batches
    )

  def _judge(self, training: train.Training) -> dict[str, Any]:
    """Scores of the packed model, which is stored."""
    start = time.perf_counter()
    plans = self.variant.plans
    packed = train.deploy(plans, training)
    scores = self._scores(training, packed)
    best = self.task.best[0]
    whole = ql.integer_zero(training.acts)
    if jax.tree.structure(whole) != jax.tree.structure(training.acts):
      exported = self._scores(training._replace(acts=whole), packed)
      scores[f"{best}_integer_zero"] = exported[best]
    # There may be some already, of a start that was killed before its result.
    store = functools.partial(checkpoint.save, overwrite=True)
    if plans.acts is not None:
      store(self.folder / "acts", training.acts)
    store(self.folder / "params", {**training.variables, "params": packed})
    bits = ql.nbits(packed)
    _LOG.info(
      "%s: packed in %.1f s", self.variant.name, time.perf_counter() - start
    )
    return scores | {
      "stored_bytes": bits // 8,
      "bits_per_weight": ql.bits_per_weight(packed),
      "steps": int(training.step),
    }

  def _save(self, training: train.Training) -> None:
    leaves, _ = jax.tree.flatten(training)
    saves = self.folder / "saves"
    place = saves / f"{int(training.step):08}"
    if not place.exists():
      named = {f"{i:04}": leaf for i, leaf in enumerate(leaves)}
      checkpoint.save(place, named)
    for old in _saves(saves)[:-2]:
      shutil.rmtree(old)

  def _restored(self, training: train.Training) -> train.Training:
    """The training at its last save; as it is where there is none."""
    saves = _saves(self.folder / "saves")
    if not saves:
      return training
    leaves, structure = jax.tree.flatten(training)
    found = workdir.restore(saves[-1])
    restored = [jnp.asarray(found[f"{i:04}"]) for i in range(len(leaves))]
    _LOG.info("%s: goes on from %s", self.variant.name, saves[-1])
    return jax.tree.unflatten(structure, restored)


def _saves(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob("[0-9]*")) if folder.exists() else []


def spread(
  training: train.Training, batch_size: int
) -> tuple[train.Training, Callable[[train.Batch], train.Batch]]:
  """The training on every local device, if they divide a batch; else on one.

  The step is compiled for all of them at once: a mean is over all examples, and
  so is a range.

  Returns:
    The training, and what lays a batch over the devices.
  """
  devices = jax.local_devices()
  if batch_size % len(devices):
    devices = devices[:1]
  mesh = jax.make_mesh(
    (len(devices),), ("batch",), (jax.sharding.AxisType.Auto,), devices=devices
  )
  everywhere, along = (
    jax.sharding.NamedSharding(mesh, spec) for spec in (jax.P(), jax.P("batch"))
  )
  lay = functools.partial(jax.device_put, device=along)
  return jax.device_put(training, everywhere), lay


def ranges(training: train.Training) -> dict[str, float]:
  """Every learned number and tracked range, the mean of its cells, by name."""
  found = {}
  for part in ("weights", "acts"):
    for path, learned in getattr(training, part).learned.items():
      for leaf in jax.tree.leaves(learned, is_leaf=_is_learned):
        if _is_learned(leaf):
          for name, value in leaf.values.items():
            found[f"{part}/{path}/{name}"] = float(np.mean(value))
    for path, stats in getattr(training, part).stats.items():
      found |= _tracked(f"{part}/{path}", stats)
  for path, carried in training.grads.items():
    found |= _tracked(f"grads/{path}", carried.state.stats)
  return found


def _tracked(name: str, stats: Any) -> dict[str, float]:
  leaves = jax.tree.leaves(stats, is_leaf=_is_range)
  return {
    f"{name}/{end}": float(np.mean(getattr(leaf, end)))
    for leaf in leaves
    if _is_range(leaf)
    for end in ("lo", "hi")
  }


def _is_learned(x: Any) -> bool:
  return isinstance(x, ql.Learned)


def _is_range(x: Any) -> bool:
  return isinstance(x, ql.Range)


def show(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The results as a table."""
  names = dict.fromkeys(key for row in results.values() for key in row)
  lines = [["", *names]]
  for variant, row in results.items():
    lines.append(
      [variant, *(f"{row[key]:.5g}" if key in row else "" for key in names)]
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(width) for cell, width in zip(line, widths, strict=True)
    )
    for line in lines
  )
