"""Quantization-aware training: trains the variants of a config and judges them.

  float/           the model that every variant starts from
  <variant>/       metrics.jsonl, tensorboard/, curves.png, and
    saves/<step>/  the training so far; the last two
    params/        checkpoint of the packed model
    robustness.json  test errors under bit errors, where they are asked for
    layers.json    with a budget: bits and cost of each layer, and cost.png
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
from quantlab.experiments.qat import budgets, curves, logbook, robust, settings

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
  example = next(iter(job.task.batches(1, job.seed, 0)))[0]
  variables = jax.jit(job.task.model.init)(jax.random.key(job.seed), example)
  root = pathlib.Path(workdir_)
  if not (root / _FLOAT).exists():
    for variant in job.variants:
      if variant.budget is not None:  # one too small costs no training
        _Run(job, variant, root / variant.name, variables).begin()
  folder = workdir.Workdir(root)
  environment = report.environment()
  folder.begin({"config": config}, environment)
  folder.expect({"data": job.task.sha256})
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
  if panels:
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
    training, optimizer, keeper, batch = self.begin()
    if keeper is not None and not _saves(self.folder / "saves"):
      with configs.explained():
        training = keeper.begin(training, self._loss(batch), track)
    training = self._train(training, optimizer, keeper, track, stop)
    scores = self._judge(training)
    best = self.task.best[0]
    curves.of_run(self.folder, best)
    if keeper:
      scores |= self._cost(keeper, training)
    workdir.write_json(done, scores)  # last: it says that all else is there
    _LOG.info("%s: %s %.4f", self.variant.name, best, scores[best])
    return scores, training.variables

  def begin(
    self,
  ) -> tuple[train.Training, Any, budgets.Keeper | None, train.Batch]:
    """The training before its first step, its optimizer, who keeps its budget.

    And the batch that ranges start from.
    """
    limit, plans = self.variant.budget, self.variant.plans
    optimizer = self.steps.transformation(
      None if limit is None else limit.optimizer()
    )
    batches = self.task.batches(self.steps.range_batch, self.job.seed, 0)
    batch = next(iter(batches))
    with configs.explained():
      training = train.start(
        self.task.model, self.variables, optimizer, plans, batch
      )
      keeper = None
      if limit is not None:
        keeper = budgets.Keeper(
          limit, self.task.model, plans, training, batch[0]
        )
    return training, optimizer, keeper, batch

  def _loss(self, batch: train.Batch) -> Callable[[train.Training], float]:
    inputs, labels = batch

    def loss(training):
      outputs = self.model(training, self.rounded(training), inputs)
      return float(jnp.mean(self.task.objective(outputs, jnp.asarray(labels))))

    return loss

  def _train(
    self,
    training: train.Training,
    optimizer: Any,
    keeper: budgets.Keeper | None,
    track: progress.Track,
    stop: list[int],
  ) -> train.Training:
    kept = budgets.Kept(training, jnp.zeros((), bool)) if keeper else None
    training, kept = self._restored((training, kept))
    steps, first = self.steps, int(training.step)
    update = train.step(
      self.task.model,
      optimizer,
      self.variant.plans,
      objective=self.task.objective,
      seed=self.job.seed,
      errors=self.variant.errors,
      clip=self.variant.clip,
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
        last, row = i + 1 == steps.steps, {}
        if last or (i + 1) % steps.evaluate_every == 0:
          row |= {"loss": seen.loss} | self._numbers(training)
        if keeper and (last or (i + 1) % keeper.budget.every == 0):
          training, kept, cost = keeper.decide(training, kept, i + 1)
          row["cost"] = cost
        if row:
          write(i + 1, row)
        if last or stop or (i + 1) % steps.save_every == 0:
          self._save(i + 1, (training, kept))
        if stop:
          raise Stopped(
            f"{self.variant.name}: stopped and saved at step {i + 1} of "
            f"{steps.steps}; the same command goes on from there"
          )
    return keeper.result(training, kept) if keeper else training

  def _cost(
    self, keeper: budgets.Keeper, training: train.Training
  ) -> dict[str, Any]:
    rows = keeper.table(training)
    workdir.write_json(self.folder / "layers.json", rows)
    _LOG.info("%s:\n%s", self.variant.name, show({r["layer"]: r for r in rows}))
    curves.cost(self.folder, keeper.budget.of, keeper.most)
    costs = [row["cost"] for row in logbook.read(self.folder) if "cost" in row]
    return {
      "within": sum(cost <= keeper.most for cost in costs) / len(costs),
      "cost": keeper.cost(training),
      "budget": keeper.most,
      "least": keeper.least,
    }

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
    if self.job.robustness is not None:
      logits = functools.partial(self.model, training)
      batches = [*self.task.test(self.steps.batch_size)]
      scores |= robust.score(
        self.job.robustness, logits, packed, batches, self.folder
      )
    bits = ql.nbits(packed)
    _LOG.info(
      "%s: packed in %.1f s", self.variant.name, time.perf_counter() - start
    )
    return scores | {
      "stored_bytes": bits // 8,
      "bits_per_weight": ql.bits_per_weight(packed),
      "steps": int(training.step),
    }

  def _save(self, step: int, state: Any) -> None:
    leaves, _ = jax.tree.flatten(state)
    saves = self.folder / "saves"
    place = saves / f"{step:08}"
    if not place.exists():
      named = {f"{i:04}": leaf for i, leaf in enumerate(leaves)}
      checkpoint.save(place, named)
    for old in _saves(saves)[:-2]:
      shutil.rmtree(old)

  def _restored(self, state: Any) -> Any:
    """The state at its last save; as it is where there is none."""
    saves = _saves(self.folder / "saves")
    if not saves:
      return state
    leaves, structure = jax.tree.flatten(state)
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
      for gate in ql.gates(learned):
        found[f"{part}/{path}/bits"] = float(np.mean(gate.bits))
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
  names = dict.fromkeys(
    key
    for row in results.values()
    for key, value in row.items()
    if not isinstance(value, str)
  )
  lines = [["", *names]]
  for variant, row in results.items():
    lines.append(
      [variant, *(_cell(row[key]) if key in row else "" for key in names)]
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.rjust(width) for cell, width in zip(line, widths, strict=True)
    )
    for line in lines
  )


def _cell(value: float) -> str:
  return str(value) if isinstance(value, int) else f"{value:.5g}"
