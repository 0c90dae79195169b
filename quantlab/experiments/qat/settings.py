"""What a config of a training may say, checked before any work.

  seed        of the model, the batches and random rounding
  model       {"name": ...}: a key of `models.cnn.NETWORKS`, "llama", or
              "denoiser" with arguments of `speech.denoise`
  data        `tasks.Images`, `tasks.Bytes` or `speech.Speech`
  float       `Steps` of the float model that every variant starts from
  train       `Steps` of a variant
  weights     pairs of a pattern of params' paths and a quantizer's name
  acts        pairs of a pattern of sites and a quantizer's name
  grads       the same for gradients
  quantizers  {name: call}, what the names stand for; "keep" needs no entry
  robustness  `robust.Robustness`: how models are scored under bit errors
  variants    {name: {...}}, none or more, of which any part may be left out:
    quantizers  those that are different
    train       `Steps` that are different
    budget      `budgets.Budget`: what the model may cost
    errors      `train.Errors`: bit errors in training
    clip        the largest magnitude of a param
    panel       of the picture that it is drawn in

A name that a variant has no quantizer for keeps what it is placed on.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import optax

from quantlab.experiments import configs, train
from quantlab.experiments.qat import budgets, robust, speech, tasks
from quantlab.models import cnn
from quantlab.transforms import compose, plan

_PLANS = ("weights", "acts", "grads")
_VARIANT = ("quantizers", "train", "budget", "errors", "clip", "panel")
_SECTIONS = (
  *("seed", "model", "data", "float", "train"),
  *(*_PLANS, "quantizers", "robustness", "variants"),
)


@dataclasses.dataclass(frozen=True)
class Steps:
  """How a model is trained.

  Attributes:
    steps: updates; after none, a variant is what calibration alone gives.
    batch_size: examples of an update.
    optimizer: of the params, "sgd" (Nesterov's momentum 0.9) or "adamw".
    learning_rate: of the params, first.
    schedule: of it, "cosine", to 0, or "steps", a tenth after two, three and
      four fifths of the way.
    weight_decay: of kernels.
    max_norm: of the gradient of the params, which is scaled down to it.
    range_optimizer: of what quantizers learn, "adam" or "sgd".
    range_learning_rate: of it, first; it falls alike.
    range_batch: examples that ranges of activations start from.
    evaluate_every: steps between evaluations.
    save_every: steps between checkpoints.
  """

  steps: int = 400
  batch_size: int = 64
  optimizer: str = "sgd"
  learning_rate: float = 0.05
  schedule: str = "cosine"
  weight_decay: float = 1e-4
  max_norm: float | None = None
  range_optimizer: str = "adam"
  range_learning_rate: float = 1e-3
  range_batch: int = 256
  evaluate_every: int = 50
  save_every: int = 100

  def __post_init__(self):
    for name, least in (
      ("steps", 0),
      *((name, 1) for name in ("batch_size", "range_batch")),
      *((name, 1) for name in ("evaluate_every", "save_every")),
    ):
      if getattr(self, name) < least:
        raise ValueError(
          f"{name}={getattr(self, name)} must be at least {least}"
        )
    if self.max_norm is not None and not self.max_norm > 0:
      raise ValueError(f"max_norm={self.max_norm} must be above 0")
    for name, known in (
      ("optimizer", ("sgd", "adamw")),
      ("range_optimizer", ("adam", "sgd")),
      ("schedule", ("cosine", "steps")),
    ):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name}={getattr(self, name)!r} is none of {', '.join(known)}"
        )

  def transformation(
    self, gates: optax.GradientTransformation | None = None
  ) -> optax.GradientTransformation:
    """The optimizer of params, of ranges and of gates."""
    steps = max(1, self.steps)
    if self.schedule == "cosine":
      schedule = optax.cosine_decay_schedule(self.learning_rate, steps)
    else:
      drops = {steps * fifths // 5: 0.1 for fifths in (2, 3, 4)}
      schedule = optax.piecewise_constant_schedule(self.learning_rate, drops)
    if self.optimizer == "sgd":
      params = train.sgd(
        steps, learning_rate=schedule, weight_decay=self.weight_decay
      )
    else:
      params = optax.adamw(
        schedule, weight_decay=self.weight_decay, mask=train.kernels
      )
    if self.max_norm is not None:
      params = optax.chain(optax.clip_by_global_norm(self.max_norm), params)
    rate = optax.cosine_decay_schedule(self.range_learning_rate, steps)
    adam = self.range_optimizer == "adam"
    ranges = optax.adam(rate) if adam else optax.sgd(rate, momentum=0.9)
    return train.separate(params, ranges, gates)


class Variant(NamedTuple):
  """A way to train.

  Attributes:
    name: it.
    plans: what is quantized.
    steps: how it is trained.
    panel: title of the panel of the picture that it is drawn in.
    budget: what it may cost.
    errors: bits that flip while it is trained.
    clip: the largest magnitude of a param.
  """

  name: str
  plans: train.Plans
  steps: Steps
  panel: str = ""
  budget: budgets.Budget | None = None
  errors: train.Errors | None = None
  clip: float | None = None


class Settings(NamedTuple):
  """A config, checked.

  Attributes:
    seed: of everything.
    task: what is trained.
    float: the training that all variants start from.
    variants: in the order of the config.
    robustness: how models are scored under bit errors.
  """

  seed: int
  task: tasks.Task
  float: Steps
  variants: list[Variant]
  robustness: robust.Robustness | None = None


def read(config: Mapping[str, Any]) -> Settings:
  """Checks a config and opens its data.

  Raises:
    InputError: names the entry, the value and what is known there.
  """
  for name in config:
    if name not in _SECTIONS:
      problem = "no such section"
      raise configs.unknown(f"config.{name}", problem, name, _SECTIONS)
  seed = config.get("seed", 0)
  if type(seed) is not int or seed < 0:
    raise configs.InputError(
      f"config.seed: expected an integer of at least 0, got {seed!r}"
    )
  variants = config.get("variants") or {}
  if not isinstance(variants, Mapping):
    raise configs.InputError(
      f"config.variants: expected a dict, got {variants!r}"
    )
  _check_names(config, variants)
  return Settings(
    seed,
    _task(config),
    _section(Steps, config.get("float", {}), "config.float"),
    [_variant(config, name, entry) for name, entry in variants.items()],
    _optional(robust.Robustness, config, "robustness", "config"),
  )


def _check_names(
  config: Mapping[str, Any], variants: Mapping[str, Any]
) -> None:
  """Refuses a quantizer that is placed nowhere, and a name that is none."""
  placed = {"keep"}
  for part in _PLANS:
    placed |= {name for _, name in _rules(config, part)}
  named = {"keep", *config.get("quantizers", {})}
  for name, entry in variants.items():
    own = (entry or {}).get("quantizers", {})
    named |= {*own}
    for key in own:
      if key not in placed:
        where = f"config.variants.{name}.quantizers.{key}"
        raise configs.unknown(where, "no rule places it", key, placed)
  for key in placed - named:
    where = "config.quantizers"
    raise configs.unknown(where, f"no quantizer is named {key!r}", key, named)


def _task(config: Mapping[str, Any]) -> tasks.Task:
  model = config.get("model", {})
  name = model.get("name") if isinstance(model, Mapping) else None
  known = {
    **{
      network: (tasks.Images, functools.partial(tasks.classify, network))
      for network in cnn.NETWORKS
    },
    "llama": (tasks.Bytes, tasks.model_language),
    "denoiser": (speech.Speech, speech.denoise),
  }
  if name not in known:
    where = "config.model.name"
    raise configs.unknown(where, f"unknown model {name!r}", name, known)
  kind, make = known[name]
  data = _section(kind, config.get("data", {}), "config.data")
  entries = {key: value for key, value in model.items() if key != "name"}
  bound = configs.bind(make, entries, "config.model", data, name=name)
  with configs.explained():
    return make(*bound.args, **bound.kwargs)


def _section(kind: Any, entry: Any, where: str) -> Any:
  if not isinstance(entry, Mapping):
    raise configs.InputError(f"{where}: expected a dict, got {entry!r}")
  bound = configs.bind(kind, entry, where, name=where)
  try:
    return kind(*bound.args, **bound.kwargs)
  except ValueError as error:
    raise configs.InputError(f"{where}: {error}") from error


def _variant(config: Mapping[str, Any], name: str, entry: Any) -> Variant:
  where = f"config.variants.{name}"
  entry = entry or {}
  for key in entry:
    if key not in _VARIANT:
      problem = "no such entry of a variant"
      raise configs.unknown(f"{where}.{key}", problem, key, _VARIANT)
  calls = {**config.get("quantizers", {}), **entry.get("quantizers", {})}
  quantizers = {
    key: configs.build(call, f"{where}.quantizers.{key}")
    for key, call in calls.items()
    if call is not None
  }
  steps = {**config.get("train", {}), **entry.get("train", {})}
  plans = {part: _plan(_rules(config, part), quantizers) for part in _PLANS}
  clip = entry.get("clip")
  if clip is not None and not (isinstance(clip, int | float) and clip > 0):
    raise configs.InputError(f"{where}.clip: {clip!r} is no number above 0")
  return Variant(
    name,
    train.Plans(**plans),
    _section(Steps, steps, f"{where}.train"),
    str(entry.get("panel", "")),
    _optional(budgets.Budget, entry, "budget", where),
    _optional(train.Errors, entry, "errors", where),
    clip,
  )


def _optional(
  kind: Any, config: Mapping[str, Any], name: str, where: str
) -> Any:
  """A section, or None where there is none."""
  entry = config.get(name)
  if entry is None:
    return None
  return _section(kind, entry, f"{where}.{name}")


def _rules(config: Mapping[str, Any], part: str) -> list[tuple[str, str]]:
  """Pairs of a pattern and a quantizer's name."""
  rules = config.get(part, ())
  for i, rule in enumerate(rules):
    pair = isinstance(rule, list | tuple) and len(rule) == 2
    if not pair or not all(isinstance(word, str) for word in rule):
      raise configs.InputError(
        f"config.{part}[{i}]: expected a pattern and a quantizer's name, got "
        f"{rule!r}"
      )
  return [(pattern, name) for pattern, name in rules]


def _plan(
  rules: Sequence[tuple[str, str]], quantizers: Mapping[str, Any]
) -> plan.Plan | None:
  """A plan; None if it keeps everything."""
  placed = [
    (pattern, quantizers.get(name, compose.keep())) for pattern, name in rules
  ]
  if all(quantizer is compose.keep() for _, quantizer in placed):
    return None
  return plan.by_path([*placed, (".*", compose.keep())])
