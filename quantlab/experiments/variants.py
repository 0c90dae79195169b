"""The rows of a sweep: which quantizer each leaf gets, from a config.

A config of the ptq job has these sections, all plain data:

  rules     pairs of a pattern and a quantizer; `"weights"` stands for that of
            the section `weights`, anything else is a call (see `configs`);
  weights   method, and arguments for every quantizer of its nest;
  sweep     values for those entries of `weights` that are None;
  <method>  arguments of one method, such as `icquant`;
  model, data, read by `ptq`.
"""

from collections.abc import Iterable, Mapping, Sequence
import itertools
import re
from typing import Any, NamedTuple

from quantlab.core import base
from quantlab.experiments import configs
from quantlab.transforms import plan

SECTIONS = ("model", "data", "rules", "weights", "sweep")


class Rule(NamedTuple):
  """One line of a plan.

  Attributes:
    pattern: regular expression, searched in the leaf's path.
    method: name of the quantizer.
    bits: of a code, where the method has such an argument.
    quantizer: it.
    swept: whether the rule differs between variants.
  """

  pattern: str
  method: str
  bits: int | None
  quantizer: base.Quantizer
  swept: bool


class Variant(NamedTuple):
  """One row of a sweep.

  Attributes:
    name: such as `icquant-3bit`; no other variant of the sweep has it.
    method: of the section `weights`.
    bits: of the section `weights`.
    rules: the plan.
  """

  name: str
  method: str
  bits: int | None
  rules: tuple[Rule, ...]

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
    ...   weights=dict(method=None, bits=3),
    ...   sweep=dict(method=["rtn", "icquant"]),
    ...   icquant=dict(inner="rtn"),
    ... )
    >>> [variant.name for variant in variants(config)]
    ['rtn-3bit', 'icquant-3bit']
  """
  known = dict.fromkeys([*SECTIONS, *configs.QUANTIZERS])
  for key in config:
    if key not in known:
      raise configs.unknown(f"config.{key}", "unknown section", key, known)
  rules = _rules(config)
  found = [_variant(config, rules, weights) for weights in _rows(config)]
  names = [variant.name for variant in found]
  for name in names:
    if names.count(name) > 1:
      raise configs.InputError(f"config.sweep: gives {name} more than once")
  return found


def _rows(config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The section `weights` of each variant, with nothing left open."""
  weights, sweep = section(config, "weights"), section(config, "sweep", {})
  for key in sweep:
    if key not in weights:
      problem = "config.weights has no such entry"
      raise configs.unknown(f"config.sweep.{key}", problem, key, weights)
  # In the order of the sweep: its first entry changes slowest.
  order = [*sweep, *(key for key in weights if key not in sweep)]
  return [
    dict(zip(order, values, strict=True))
    for values in itertools.product(
      *(_choices(key, weights[key], sweep.get(key)) for key in order)
    )
  ]


def _choices(key: str, value: Any, swept: Any) -> Sequence[Any]:
  if value is not None:
    return [value]
  if isinstance(swept, list) and swept:
    return swept
  raise configs.InputError(
    f"config.weights.{key}: is None, and config.sweep.{key} lists no values "
    f"for it, got {swept!r}"
  )


def _rules(config: Mapping[str, Any]) -> list[Rule | str]:
  """The rules; one whose quantizer is `"weights"` is its pattern alone."""
  rules = config.get("rules")
  if not isinstance(rules, list) or not rules:
    raise configs.InputError(
      "config.rules: expected pairs of a pattern and a quantizer, "
      f"got {rules!r}"
    )
  return [_rule(rule, f"config.rules[{i}]") for i, rule in enumerate(rules)]


def _rule(rule: Any, where: str) -> Rule | str:
  if not isinstance(rule, list) or len(rule) != 2:
    raise configs.InputError(
      f"{where}: expected a pair of a pattern and a quantizer, got {rule!r}"
    )
  pattern, what = rule
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise configs.InputError(
      f"{where}[0]: {pattern!r} is no pattern: {error}"
    ) from None
  if what == "weights":
    return pattern
  quantizer = configs.build(what, f"{where}[1]")
  method, _, named = configs.parse(what, where, "quantizer")
  return Rule(pattern, method, named.get("bits"), quantizer, swept=False)


def _variant(
  config: Mapping[str, Any], rules: list[Rule | str], weights: dict[str, Any]
) -> Variant:
  swept = _weights(config, weights)
  placed = tuple(
    swept._replace(pattern=rule) if isinstance(rule, str) else rule
    for rule in rules
  )
  return Variant(_name(config, weights), swept.method, swept.bits, placed)


def _weights(config: Mapping[str, Any], weights: dict[str, Any]) -> Rule:
  """The rule of the section `weights`, without its pattern."""
  method = weights.get("method")
  if method not in configs.QUANTIZERS:
    raise configs.unknown(
      "config.weights.method",
      f"unknown quantizer {method!r}",
      method,
      configs.QUANTIZERS,
    )
  shared = {k: v for k, v in weights.items() if k != "method"}
  quantizer = configs.build(
    {**section(config, method, {}), "method": method},
    f"config.{method}",
    configs.Shared(shared, "config.weights"),
  )
  return Rule("", method, weights.get("bits"), quantizer, swept=True)


def _name(config: Mapping[str, Any], weights: dict[str, Any]) -> str:
  """Method and bits, then what else the sweep varies."""
  parts = [weights["method"]]
  if "bits" in weights:
    parts.append(f"{weights['bits']}bit")
  more = section(config, "sweep", {}).keys() - {"method", "bits"}
  parts += [str(weights[key]) for key in weights if key in more]
  return "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts)


def section(
  config: Mapping[str, Any], name: str, default: Any = None
) -> dict[str, Any]:
  """A section of a config; without a default it must be there."""
  found = config.get(name, default)
  if not isinstance(found, dict):
    raise configs.InputError(
      f"config.{name}: expected a section of named values, got {found!r}"
    )
  return found
