"""Which layer is quantized how, where the whole model has so many bytes.

The section `budget` of a config of the ptq job:

  bytes    a list of limits, of which each gives a row of its own;
  layers   `{name: pattern}` of the paths of a layer's parameters and sites;
  choices  names of variants of the sweep: how a layer may be quantized;
  metric   an error among the task's metrics, by default its first.

The error of each layer alone at each choice is measured, the others float. That
errors of layers are independent, so that their squares add up, is an assumption
which the row of the chosen model tests. The choice is an integer programme; see
`allocation`.
"""

from collections.abc import Callable, Mapping
import logging
from typing import Any, NamedTuple

import quantlab as ql
from quantlab.core import qtensor
from quantlab.experiments import (
  allocation,
  configs,
  evaluate,
  progress,
  report,
  schemes,
  variants,
  workdir,
)
from quantlab.experiments.tasks import base
from quantlab.transforms import plan

_LOG = logging.getLogger(__name__)

Error = Callable[[schemes.Scheme], dict[str, float]]
"""Scores of a scheme beside the float model."""


class Budget(NamedTuple):
  """What the section says.

  Attributes:
    bytes: limits of the stored parameters.
    layers: patterns by name.
    choices: names of variants.
    metric: key of an error.
  """

  bytes: tuple[int, ...]
  layers: dict[str, str]
  choices: tuple[str, ...]
  metric: str


def budget(
  config: Mapping[str, Any],
  every: list[variants.Variant],
  metrics: tuple[base.Metric, ...],
) -> Budget | None:
  """Reads the section; None where there is none.

  Raises:
    InputError: it names the entry and what is known there.
  """
  if "budget" not in config:
    return None

  def section(
    bytes: tuple[int, ...],
    layers: dict,
    choices: tuple[str, ...],
    metric: str = metrics[0].key,
  ) -> Budget:
    return Budget(bytes, layers, choices, metric)

  entries = variants.section(config, "budget")
  bound = configs.bind(section, entries, "config.budget")
  found = section(*bound.args, **bound.kwargs)
  errors = [metric.key for metric in metrics if metric.falls]
  names = [variant.name for variant in every]
  for where, given, known in (
    ("metric", [found.metric], errors),
    ("choices", found.choices, names),
  ):
    for name in given:
      if name not in known:
        where = f"config.budget.{where}"
        raise configs.unknown(where, f"there is no {name!r}", name, known)
  return found


def check(found: Budget, paths: list[str]) -> None:
  """Refuses layers that leave out a parameter, or share one.

  Raises:
    InputError: it names the parameter, or what is no pattern.
  """
  with configs.explained(), plan.naming("config.budget.layers"):
    every = {
      layer: schemes.inside(pattern, paths)
      for layer, pattern in found.layers.items()
    }
  for path in paths:
    holding = [layer for layer, own in every.items() if path in own]
    if len(holding) != 1:
      raise configs.InputError(
        f"config.budget.layers: {path} is in {holding or 'none'} of "
        f"{[*found.layers]}, and has to be in one"
      )


def choose(
  found: Budget,
  task: base.Task,
  error: Error,
  folder: workdir.Workdir,
  track: progress.Track,
) -> dict[str, dict[str, Any]]:
  """A row of results for each limit, its model stored like a variant's.

  Args:
    found: the section.
    task: the float model.
    error: scores of a scheme beside it.
    folder: of the run, whose variants are finished.
    track: shows progress.

  Raises:
    InputError: a limit is below the least there is; says which that is.
  """
  names = {limit: f"budget-{limit}" for limit in found.bytes}
  rows = {name: folder.result(name) for name in names.values()}
  if all(rows.values()):
    return rows
  made = {name: schemes.restore(folder.root / name) for name in found.choices}
  shapes = next(iter(task.batches)).args
  sites = [*ql.sites(task.model, {"params": task.params}, *shapes)]

  def joined(chosen: Mapping[str, str]) -> schemes.Scheme:
    parts = {layer: made[name] for layer, name in chosen.items()}
    return schemes.join(found.layers, parts, task.params, sites)

  def loss(chosen: Mapping[str, str]) -> float:
    scheme = joined(chosen)
    scores = error(scheme._replace(params=evaluate.decode(scheme.params)))
    return scores[found.metric] ** 2

  costs = {
    layer: {name: _bytes(made[name].params, pattern) for name in found.choices}
    for layer, pattern in found.layers.items()
  }
  with configs.explained():
    for limit in found.bytes:  # before the work, refuse what cannot be had
      least = allocation.floor(costs)
      if limit < least:
        raise configs.InputError(
          f"config.budget.bytes: {limit} is below {least}, the least that "
          f"{[*found.choices]} take"
        )
    losses = workdir.kept(
      folder.root / "budget",
      lambda: allocation.measure(
        loss, found.layers, found.choices, track=track
      ),
    )
    for limit, name in names.items():
      chosen = allocation.programme(losses, costs, limit)
      rows[name] = rows[name] or _row(
        found, name, chosen, joined(chosen), error, sites, folder
      )
  return rows


def _bytes(params: Any, pattern: str) -> int:
  leaves = plan.leaves(params)
  inside = schemes.inside(pattern, leaves)
  return sum(qtensor.nbits(leaves[path]) // 8 for path in inside)


def _row(
  found: Budget,
  name: str,
  chosen: dict[str, str],
  scheme: schemes.Scheme,
  error: Error,
  sites: list[str],
  folder: workdir.Workdir,
) -> dict[str, Any]:
  """Stores and judges what was chosen."""
  packed = scheme.params
  workdir.kept(folder.params(name), lambda: packed)
  workdir.write_json(
    folder.root / name / schemes.CHOSEN,
    {"chosen": chosen, "layers": found.layers, "sites": sites},
  )
  scores = error(scheme)
  layers = []
  for layer, choice in chosen.items():
    rows = {row["path"]: row for row in folder.result(choice)["layers"]}
    layers += [rows[path] for path in schemes.inside(found.layers[layer], rows)]
  row = {
    "method": "budget",
    "bits": None,
    "granularity": "",
    "acts": " ".join(f"{k}:{v}" for k, v in chosen.items()),
    "precision": "",
    **report.total(layers),
    **scores,
    "model_bytes": qtensor.nbits(packed) // 8,
    "chosen": chosen,
    "layers": layers,
  }
  folder.finish(name, row)
  _LOG.info(
    "%s: %d bytes, %s %.5f: %s",
    name,
    row["model_bytes"],
    found.metric,
    scores[found.metric],
    row["acts"],
  )
  return row
