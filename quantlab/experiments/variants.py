"""The rows of a sweep: which quantizer each leaf gets, from a config.

A config of the ptq job has these sections, all plain data:

  task         what models are judged on, a name of `tasks.table`;
  model, data  of the task;
  rules        pairs of a pattern and a quantizer; `"weights"` stands for the
               one that is swept, anything else is a call (see `configs`). Or
               several such lists, by a name of your choice;
  methods      the quantizers that are swept, calls by a name of your choice;
               beside its arguments one may say `"sensitivity": True`, which of
               several lists of rules it goes with, `"rules": name`, and which
               plan of activations, `"acts": name`;
  weights      arguments for every quantizer of a method's nest, such as bits.
               Those that are None are open; `method` picks one of `methods`;
  sweep        by method, lists of values for what `weights` leaves open: a
               variant for each combination. What it does not list is left to
               the method itself;
  acts, sensitivity, read by `calibration`. Like bits, `weights` and `sweep` may
               give a variant `acts`, the name of one of the section's plans;
  budget       read by `chooser`;
  evaluate     `"packed"`, the default, runs each variant from packed weights,
               `"decoded"` from floats; see `evaluate`.
"""

from collections.abc import Iterable, Mapping
import itertools
import re
from typing import Any, NamedTuple

from quantlab.core import base
from quantlab.experiments import configs
from quantlab.transforms import plan

SECTIONS = (
  *("task", "model", "data", "rules", "methods", "weights", "sweep"),
  *("acts", "sensitivity", "budget", "evaluate"),
)
# What a variant is beside the arguments of its quantizers.
_APART = ("method", "acts")
# Names of folders beside those of the variants.
_TAKEN = ("float", "trained", "sensitivity", "acts", "budget")


class Rule(NamedTuple):
  """One line of a plan.

  Attributes:
    pattern: regular expression, searched in the leaf's path.
    method: name of the quantizer.
    bits: of a code, where the method has such an argument.
    quantizer: it.
    swept: whether the rule differs between variants.
    sensitive: whether the quantizer is told how much each weight matters.
  """

  pattern: str
  method: str
  bits: int | None
  quantizer: base.Quantizer
  swept: bool
  sensitive: bool = False


class Variant(NamedTuple):
  """One row of a sweep.

  Attributes:
    name: such as `icquant-3bit`; no other variant of the sweep has it.
    method: a name of the section `methods`.
    bits: of a code.
    rules: the plan.
    granularity: in words, such as `per_block(-2, 128)`; empty if not given.
    acts: a name of the section `acts`; empty for float activations.
  """

  name: str
  method: str
  bits: int | None
  rules: tuple[Rule, ...]
  granularity: str = ""
  acts: str = ""

  @property
  def sensitive(self) -> bool:
    """Whether some rule asks for sensitivities."""
    return any(rule.sensitive for rule in self.rules)

  def place(self, paths: Iterable[str]) -> tuple[dict[str, Rule], list[str]]:
    """The rule of each leaf, and the patterns that no leaf uses.

    Raises:
      InputError: a leaf matches no rule; names it.
    """
    pairs = [(rule.pattern, rule) for rule in self.rules]
    with configs.explained():
      chosen, unused = plan.match(pairs, list(paths))
    return {path: self.rules[i] for path, i in chosen.items()}, unused


def variants(config: Mapping[str, Any]) -> list[Variant]:
  """Reads the variants of a plain config; see `configs.plain`.

  Raises:
    InputError: it names the place in the config.

  Example:
    >>> config = dict(
    ...   rules=[["bias", "keep"], ["kernel", "weights"]],
    ...   methods=dict(plain="rtn", coded=dict(method="icquant", inner="rtn")),
    ...   weights=dict(method=None, bits=None),
    ...   sweep=dict(plain=dict(bits=[3, 4]), coded=dict(bits=[2])),
    ... )
    >>> [variant.name for variant in variants(config)]
    ['plain-3bit', 'plain-4bit', 'coded-2bit']
  """
  for key in config:
    if key not in SECTIONS:
      raise configs.unknown(f"config.{key}", "unknown section", key, SECTIONS)
  rules = _plans(config)
  found = [_variant(config, rules, row) for row in _rows(config)]
  names = [variant.name for variant in found]
  for name in names:
    if names.count(name) > 1:
      raise configs.InputError(f"config.sweep: gives {name} more than once")
  return found


def _rows(config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The section `weights` of each variant, with nothing left open."""
  weights, sweep = section(config, "weights"), section(config, "sweep", {})
  methods = section(config, "methods")
  one = weights.get("method")
  places = {"config.weights.method": one} if one is not None else {}
  places = places or {f"config.sweep.{name}": name for name in sweep}
  if not places:
    raise configs.InputError("config.sweep: names no method")
  for where, name in places.items():
    if name not in methods:
      problem = f"config.methods has no {name!r}"
      raise configs.unknown(where, problem, name, methods)
  every = [_grid(weights, sweep, name) for name in places.values()]
  return [row for rows in every for row in rows]


def _grid(
  weights: Mapping[str, Any], sweep: Mapping[str, Any], name: str
) -> Iterable[dict[str, Any]]:
  """The rows of one method."""
  where = f"config.sweep.{name}"
  lists = section(sweep, name, {}, where)
  for key, values in lists.items():
    if key not in weights or key == "method":
      problem = "config.weights has no such entry"
      raise configs.unknown(f"{where}.{key}", problem, key, weights)
    if not isinstance(values, list) or not values:
      raise configs.InputError(
        f"{where}.{key}: expected a list of values, got {values!r}"
      )
  # In the order of the sweep: its first entry changes slowest.
  choices = {
    key: lists.get(key, []) if weights[key] is None else [weights[key]]
    for key in dict.fromkeys([*lists, *weights])
    if key != "method"
  }
  choices = {key: values for key, values in choices.items() if values}
  for values in itertools.product(*choices.values()):
    yield {"method": name, **dict(zip(choices, values, strict=True))}


Rules = list[Rule | str]
"""A rule whose quantizer is `"weights"` is its pattern alone."""


def _plans(config: Mapping[str, Any]) -> dict[str | None, Rules]:
  """The lists of rules by name; a list without a name has the name None."""
  rules = config.get("rules")
  if isinstance(rules, dict) and rules:
    return {
      name: _rules(each, f"config.rules.{name}") for name, each in rules.items()
    }
  return {None: _rules(rules, "config.rules")}


def _rules(rules: Any, where: str) -> Rules:
  if not isinstance(rules, list) or not rules:
    raise configs.InputError(
      f"{where}: expected pairs of a pattern and a quantizer, got {rules!r}"
    )
  return [_rule(rule, f"{where}[{i}]") for i, rule in enumerate(rules)]


def _rule(entry: Any, where: str) -> Rule | str:
  pattern, what = _pair(entry, where)
  return pattern if what == "weights" else rule(entry, where)


def rule(entry: Any, where: str) -> Rule:
  """Reads a pair of a pattern and a quantizer that no sweep changes."""
  pattern, what = _pair(entry, where)
  quantizer = configs.build(what, f"{where}[1]")
  method, _, named = configs.parse(what, where, "quantizer")
  return Rule(pattern, method, named.get("bits"), quantizer, swept=False)


def _pair(entry: Any, where: str) -> tuple[str, Any]:
  if not isinstance(entry, list) or len(entry) != 2:
    raise configs.InputError(
      f"{where}: expected a pair of a pattern and a quantizer, got {entry!r}"
    )
  pattern, what = entry
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise configs.InputError(
      f"{where}[0]: {pattern!r} is no pattern: {error}"
    ) from None
  return pattern, what


def _variant(
  config: Mapping[str, Any],
  plans: Mapping[str | None, Rules],
  row: dict[str, Any],
) -> Variant:
  swept, name, own = _weights(config, row)
  acts = row.get("acts", own)
  if name not in plans:
    where = f"config.methods.{row['method']}.rules"
    problem = f"config.rules has no {name!r}"
    raise configs.unknown(where, problem, name, plans)
  row = {**row, "bits": swept.bits}
  placed = tuple(
    swept._replace(pattern=rule) if isinstance(rule, str) else rule
    for rule in plans[name]
  )
  return Variant(
    name=_name(config, row),
    method=swept.method,
    bits=swept.bits,
    rules=placed,
    granularity=_words(row.get("granularity", "")),
    acts=_acts(config, acts or ""),
  )


def _weights(
  config: Mapping[str, Any], row: dict[str, Any]
) -> tuple[Rule, str | None, str | None]:
  """The rule of a row without its pattern, the list of rules, the acts."""
  name = row["method"]
  call = section(config, "methods")[name]
  sensitive, rules, acts = False, None, None
  where = f"config.methods.{name}"
  if isinstance(call, dict):
    call = dict(call)
    sensitive = call.pop("sensitivity", False)
    rules, acts = call.pop("rules", None), call.pop("acts", None)
  if not isinstance(sensitive, bool):
    raise configs.InputError(
      f"{where}.sensitivity: expected True or False, got {sensitive!r}"
    )
  if sensitive and "sensitivity" not in config:
    raise configs.InputError(
      f"{where}.sensitivity: needs the section config.sensitivity"
    )
  shared = {key: value for key, value in row.items() if key not in _APART}
  quantizer = configs.build(
    call, where, configs.Shared(shared, "config.weights")
  )
  own = configs.parse(call, where, "quantizer")[2]
  bits = own.get("bits", row.get("bits"))
  return Rule("", name, bits, quantizer, True, sensitive), rules, acts


def _acts(config: Mapping[str, Any], name: Any) -> str:
  plans = section(config, "acts", {})
  if name and name not in plans:
    problem = f"config.acts has no {name!r}"
    raise configs.unknown("config.weights.acts", problem, name, plans)
  return name


def _name(config: Mapping[str, Any], row: dict[str, Any]) -> str:
  """Method and bits, then what else the method's sweep lists."""
  method, bits = row["method"], row["bits"]
  lists = section(config, "sweep", {}).get(method, {})
  more = [row[key] for key in row if key in lists and key != "bits"]
  parts = [f"{bits}bit" if bits else "", *map(_words, more)]
  slugs = [re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts]
  # What stands for nothing, as in `acts`, has no name.
  name = "-".join([method, *filter(None, slugs)])
  if not re.fullmatch(r"[\w.-]+", name) or name in _TAKEN:
    raise configs.InputError(
      f"config.methods: cannot name a folder {name!r}; choose another name"
    )
  return name


def _words(call: Any) -> str:
  """A call as Python writes it."""
  if not isinstance(call, list | dict):
    return str(call)
  name, positional, named = configs.parse(call, "", "granularity")
  arguments = [*map(str, positional), *(f"{k}={v}" for k, v in named.items())]
  return f"{name}({', '.join(arguments)})"


def section(
  config: Mapping[str, Any], name: str, default: Any = None, where: str = ""
) -> dict[str, Any]:
  """A section of a config; without a default it must be there."""
  found = config.get(name, default)
  if not isinstance(found, dict):
    where = where or f"config.{name}"
    raise configs.InputError(
      f"{where}: expected a section of named values, got {found!r}"
    )
  return found
