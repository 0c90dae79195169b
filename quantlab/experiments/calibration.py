"""What variants need besides the weights, found on what is not evaluated.

Two sections of a config ask for it:

  sensitivity  `batches`: over how many of them the mean squared gradient of the
               task's loss is taken;
  acts         plans for activations by a name of your choice. Each has `rules`,
               pairs of a pattern and a quantizer for the sites of the model,
               such as `stage_1/block_0/conv/in`, and `batches`, on which ranges
               that are not found on the fly are calibrated.

Both come from the float model, and are kept in the folder of the run.
"""

from collections.abc import Mapping
import logging
from typing import Any, NamedTuple

import quantlab as ql
from quantlab.experiments import configs, progress, variants, workdir
from quantlab.experiments.tasks import base
from quantlab.transforms import plan

_LOG = logging.getLogger(__name__)


class Acts(NamedTuple):
  """How the activations of a model are quantized.

  Attributes:
    plan: places quantizers on sites.
    bits: of the first rule that has some.
    batches: to calibrate on.
    where: its place in the config, for messages.
  """

  plan: plan.Plan
  bits: int | None
  batches: int
  where: str


def acts(config: Mapping[str, Any]) -> dict[str, Acts]:
  """Reads the section `acts` of a plain config.

  Raises:
    InputError: it names the place in the config.

  Example:
    >>> rules = [["/in$", {"method": "rtn", "bits": 8}], [".*", "keep"]]
    >>> found = acts({"acts": {"int8": {"rules": rules, "batches": 4}}})
    >>> found["int8"].bits, found["int8"].batches
    (8, 4)
  """
  plans = variants.section(config, "acts", {})
  return {name: _acts(name, plans) for name in plans}


def _acts(name: str, plans: Mapping[str, Any]) -> Acts:
  where = f"config.acts.{name}"
  entries = variants.section(plans, name, where=where)
  for key in entries:
    if key not in ("rules", "batches"):
      problem, known = "a plan has no such entry", ("rules", "batches")
      raise configs.unknown(f"{where}.{key}", problem, key, known)
  rules = entries.get("rules")
  if not isinstance(rules, list) or not rules:
    raise configs.InputError(
      f"{where}.rules: expected pairs of a pattern and a quantizer, "
      f"got {rules!r}"
    )
  read = [
    variants.rule(each, f"{where}.rules[{i}]") for i, each in enumerate(rules)
  ]
  bits = (rule.bits for rule in read if rule.bits)
  return Acts(
    plan=ql.by_path([(rule.pattern, rule.quantizer) for rule in read]),
    bits=next(bits, None),
    batches=batches(entries, where),
    where=where,
  )


def batches(entries: Mapping[str, Any], where: str) -> int:
  """The entry `batches` of a section, at least 1."""
  found = entries.get("batches")
  if type(found) is not int or found < 1:
    raise configs.InputError(
      f"{where}.batches: calibration takes at least 1 batch, got {found!r}"
    )
  return found


def check(acts: Acts, outline: base.Outline) -> None:
  """Finds rules that would never be used, and sites without a rule.

  Raises:
    InputError: it names the pattern and the sites, or the site.
  """
  sites = ql.sites(outline.model, {"params": outline.params}, *outline.args)
  with configs.explained():
    acts.plan.assign(sites)
    unused = acts.plan.unused(sites)
  if unused:
    raise configs.InputError(
      f"{acts.where}.rules: no site matches {unused}; the sites are {[*sites]}"
    )


def sensitivity(
  task: base.Task,
  count: int,
  folder: workdir.Workdir,
  track: progress.Track,
) -> Any:
  """The mean squared gradient of the task's loss, a tree like its parameters.

  Raises:
    InputError: the data have not that many batches to spare.
  """

  def compute():
    with configs.explained():
      spare = task.spare(count)
    _LOG.info("sensitivity: %d batches, none evaluated", count)
    return ql.sensitivity(task.loss, task.params, track(spare, "sensitivity"))

  return workdir.kept(folder.root / "sensitivity", compute)


def calibrate(
  task: base.Task,
  acts: Acts,
  name: str,
  folder: workdir.Workdir,
  track: progress.Track,
) -> ql.State:
  """The state of a plan after the float model has seen some batches.

  Raises:
    InputError: the data have not that many batches to spare.
  """

  def compute():
    with configs.explained():
      spare = task.spare(acts.batches)
    _LOG.info("acts %s: %d batches, none evaluated", name, len(spare))
    args = [batch.args for batch in spare]
    return ql.calibrate(
      task.model,
      {"params": task.params},
      args,
      acts.plan,
      track=lambda _, text: track(args, text),
    )

  return workdir.kept(folder.root / "acts" / name, compute)
