"""Post-training quantization: makes the variants of a sweep and judges them.

Every variant is made leaf by leaf, stored packed, and evaluated on the config's
task from what is stored. Nothing that is finished is done twice; see `workdir`.
"""

from collections.abc import Callable, Mapping
import logging
import os
import time
from typing import Any, NamedTuple

import numpy as np

from quantlab.core import qtensor
from quantlab.experiments import (
  calibration,
  chooser,
  configs,
  evaluate,
  leafwise,
  programs,
  progress,
  report,
  sizes,
  variants,
  workdir,
)
from quantlab.experiments.tasks import base, table
from quantlab.transforms import plan

_LOG = logging.getLogger(__name__)


class Job(NamedTuple):
  """What a config asks for, checked.

  Attributes:
    kind: of the task.
    model: its section `model`.
    data: its section `data`.
    variants: the rows of the sweep.
    acts: plans for activations by name.
    spared: batches that sensitivities are taken over; 0 without that section.
    ready: packed parameters in the form that is evaluated.
    budget: bytes that further variants are chosen for.
  """

  kind: base.Kind
  model: Any
  data: Any
  variants: list[variants.Variant]
  acts: dict[str, calibration.Acts]
  spared: int
  ready: Callable[[Any], Any]
  budget: chooser.Budget | None = None


class Reference(NamedTuple):
  """The float model that variants are compared with.

  Attributes:
    task: it, with its data.
    outputs: as a function of parameters.
    floats: those of the float parameters.
    sensitivity: of the parameters, where a variant asks for it; else None.
    acts: plan and calibrated state by name; those of "" are float.
  """

  task: base.Task
  outputs: evaluate.Outputs
  floats: np.ndarray
  sensitivity: Any
  acts: dict[str, tuple[Any, Any]]


def run(config: Any, workdir_: str | os.PathLike[str]) -> dict[str, Any]:
  """Runs the job of a config, or what is left of it.

  Args:
    config: an `ml_collections.ConfigDict` or a dict; see `variants` for its
      sections. `configs/ptq/minilm.py` is one.
    workdir_: the folder for all results.

  Returns:
    Scores by variant, the float model's first; `workdir_/report.json` holds
    them with the rows of every layer.

  Raises:
    InputError: a `ValueError` of one line that says what is wrong with the
      config, the model, the data or the folder.
  """
  config = configs.plain(config)
  job = read(config)
  folder = workdir.Workdir(workdir_)
  todo = _todo(job, folder)
  check(job, todo)
  environment = report.environment()
  folder.begin({"config": config}, environment)
  with progress.bars() as track:
    with configs.explained():
      place = folder.root / "trained"
      task = job.kind.load(job.model, job.data, place, track)
    inputs = _inputs(task, todo)
    folder.expect(inputs)
    results = _results(job, task, folder, track)
  about = {"config": config, "environment": environment, "task": task.source}
  with configs.explained():
    metrics = [m for m in job.kind.metrics if m.key in results["float"]]
    report.write(folder.root, results, about | inputs, metrics)
  for variant in job.variants:
    folder.tidy(variant.name)
  report.show(results, metrics)
  return report.scores(results)


def dry_run(config: Any) -> None:
  """Prints what a run would store, reading no weights.

  Args:
    config: as of `run`.

  Raises:
    InputError: as of `run`.
  """
  job = read(configs.plain(config))
  leaves = check(job, job.variants)
  found = {v.name: sizes.sizes(v, leaves) for v in job.variants}
  report.show_sizes(found, job.variants[0].place(leaves)[1])


def read(config: Mapping[str, Any]) -> Job:
  """Checks a plain config, without looking at model or data."""
  every = variants.variants(config)
  kind = table.kind(config.get("task"))
  sections = []
  for name, function in (("model", kind.model), ("data", kind.data)):
    section = variants.section(config, name)
    bound = configs.bind(function, section, f"config.{name}")
    with configs.explained():
      sections.append(function(*bound.args, **bound.kwargs))
  spared = 0
  if "sensitivity" in config:
    section = variants.section(config, "sensitivity")
    spared = calibration.batches(section, "config.sensitivity")
  return Job(
    kind,
    *sections,
    variants=every,
    acts=calibration.acts(config),
    spared=spared,
    ready=evaluate.form(config),
    budget=chooser.budget(config, every, kind.metrics),
  )


def check(job: Job, todo: list[variants.Variant]) -> Mapping[str, Any]:
  """Finds what would stop the run, before any work.

  Args:
    job: the config.
    todo: variants that are not finished.

  Returns:
    The shape of each leaf.

  Raises:
    InputError: it names the leaf, the rule or the site.
  """
  with configs.explained():
    outline = job.kind.outline(job.model, job.data)
  leaves = plan.leaves(outline.params)
  patterns = {tuple(r.pattern for r in v.rules): v for v in job.variants}
  for variant in patterns.values():
    placed, unused = variant.place(leaves)
    if not any(rule.swept for rule in placed.values()):
      raise configs.InputError(
        f'config.rules: no leaf gets "weights": {unused} match none of '
        f"{[*leaves]}"
      )
    for pattern in unused:
      _LOG.warning("rule %r matches no leaf", pattern)
  if job.budget is not None:
    chooser.check(job.budget, [*leaves])
  for variant in todo:
    with configs.explained(), plan.naming(variant.name):
      sizes.sizes(variant, leaves)
  for name in dict.fromkeys(variant.acts for variant in todo if variant.acts):
    calibration.check(job.acts[name], outline)
  return leaves


def _todo(job: Job, folder: workdir.Workdir) -> list[variants.Variant]:
  left = [v for v in job.variants if not folder.result(v.name)]
  if len(left) < len(job.variants):
    done = len(job.variants) - len(left)
    _LOG.info("%d of %d variants are finished", done, len(job.variants))
  return left


def _inputs(task: base.Task, todo: list[variants.Variant]) -> dict[str, Any]:
  """Hashes of what the run works on; refuses weights that nobody can use."""
  leaves = plan.leaves(task.params)
  for path, leaf in leaves.items() if todo else ():
    with configs.explained(), plan.naming(path):
      plan.check(leaf)
  return {"weights": workdir.fingerprint(leaves), "data": task.sha256}


def _results(
  job: Job, task: base.Task, folder: workdir.Workdir, track: progress.Track
) -> dict[str, dict[str, Any]]:
  """The result of each variant; of those finished, from the folder."""
  results = {v.name: folder.result(v.name) for v in job.variants}
  todo = [v for v in job.variants if not results[v.name]]
  outputs = evaluate.outputs(task)
  kept = workdir.kept(
    folder.root / "float", lambda: _float(task, outputs, track)
  )
  reference = Reference(
    task, outputs, kept["outputs"], None, {"": (None, None)}
  )
  if any(variant.sensitive for variant in todo):
    found = calibration.sensitivity(task, job.spared, folder, track)
    reference = reference._replace(sensitivity=found)
  for name in dict.fromkeys(variant.acts for variant in todo if variant.acts):
    acts = job.acts[name]
    state = calibration.calibrate(task, acts, name, folder, track)
    reference.acts[name] = acts.plan, state
  for variant in track(todo, "variants"):
    result = _variant(variant, job, reference, folder, track)
    with configs.explained():
      folder.finish(variant.name, result)
    results[variant.name] = result
    programs.release()
  results = {"float": kept["result"], **results}
  if job.budget is None:
    return results

  def error(scheme):
    params = job.ready(scheme.params)
    found = outputs(params, iter, scheme.acts, scheme.state)
    return task.compare(found, reference.floats)

  return results | chooser.choose(job.budget, task, error, folder, track)


def _float(
  task: base.Task, outputs: evaluate.Outputs, track: progress.Track
) -> dict[str, Any]:
  """Outputs of the float model, and its row of the report."""
  start = time.perf_counter()
  found = outputs(task.params, lambda batches: track(batches, "float"))
  seconds = time.perf_counter() - start
  _LOG.info("float: evaluated in %.1f s, with compilation", seconds)
  bits = qtensor.bits_per_weight(task.params)
  result = {
    "method": "float",
    "bits": round(bits),
    "granularity": "",
    "acts": "",
    "precision": str(round(bits)),
    "bits_per_weight": bits,
    "sqnr_db": None,
    "max_abs_error": 0.0,
    **task.compare(found, found),
    "evaluate_seconds": seconds,
    "model_bytes": qtensor.nbits(task.params) // 8,
    "layers": [],
  }
  return {"outputs": found, "result": result}


def _variant(
  variant: variants.Variant,
  job: Job,
  reference: Reference,
  folder: workdir.Workdir,
  track: progress.Track,
) -> dict[str, Any]:
  """Quantizes, stores and evaluates one variant."""
  packed, rows = leafwise.quantize(
    variant, reference.task.params, reference.sensitivity, folder, track
  )
  start = time.perf_counter()
  found = reference.outputs(
    job.ready(packed),
    lambda batches: track(batches, variant.name),
    *reference.acts[variant.acts],
  )
  seconds = time.perf_counter() - start
  acts = job.acts.get(variant.acts)
  result = {
    "method": variant.method,
    "bits": variant.bits,
    "granularity": variant.granularity,
    "acts": variant.acts,
    "precision": "".join(
      f"{letter}{bits}"
      for letter, bits in (("W", variant.bits), ("A", acts and acts.bits))
      if bits
    ),
    **report.total(rows),
    **reference.task.compare(found, reference.floats),
    "evaluate_seconds": seconds,
    "model_bytes": qtensor.nbits(packed) // 8,
    "layers": rows,
  }
  first = job.kind.metrics[0]
  _LOG.info(
    "%s: %.3f bits per weight, %s %s; evaluated in %.1f s",
    variant.name,
    result["bits_per_weight"],
    first.key,
    first.form.format(result[first.key]),
    seconds,
  )
  return result
