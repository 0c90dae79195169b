"""Plain data to functions: what a config may say, checked before any work.

A config names functions. The three spellings of a call are

  "minmax"                          without arguments;
  ("per_block", 0, 128)             with positional ones;
  {"method": "rtn", "bits": 3}      with named ones, which may be calls again.

Names, arguments and types are checked against the functions' own signatures,
so this file holds no second list of what a method takes.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import difflib
import functools
import inspect
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, gates, numerics, parameterization
from quantlab.methods import (
  cfws,
  cgmq,
  easyquant,
  icquant,
  lloyd,
  lsq,
  randbet,
  rnn_mixed,
  rtn,
  splitquant,
)
from quantlab.transforms import (
  compose,
  divergence,
  estimate,
  gated,
  levels,
  observe,
  store,
)

Plain = Any
"""Scalars, strings, None, lists and dicts of them: what JSON holds."""


def _gated(
  inner: dict, *, widths: tuple[int, ...] = gates.WIDTHS
) -> base.Quantizer:
  """`gated`, of a call that leaves the bits to the gate."""

  def with_bits(bits):
    return build(inner, "config", Shared({"bits": bits}, "widths"))

  return gated.gated(with_bits, widths=widths)


# What a parameter of each type may be in a config, by name.
FUNCTIONS: dict[Any, dict[str, Callable[..., Any]]] = {
  base.Quantizer: {
    "keep": compose.keep,
    "cast": store.cast,
    "rtn": rtn.rtn,
    "lloyd": lloyd.lloyd,
    "icquant": icquant.icquant,
    "easyquant": easyquant.easyquant,
    "exact_outliers": easyquant.exact_outliers,
    "splitquant": splitquant.splitquant,
    "clusterquant": splitquant.clusterquant,
    "cfws": cfws.cfws,
    "lsq": lsq.lsq,
    "lsq_plus": lsq.lsq_plus,
    "cgmq": cgmq.cgmq,
    "rquant": randbet.rquant,
    "rnn_weights": rnn_mixed.rnn_weights,
    "rnn_activation": rnn_mixed.rnn_activation,
    "dense_activation": rnn_mixed.dense_activation,
    "q4": rnn_mixed.q4,
    "q7": rnn_mixed.q7,
    "q12": rnn_mixed.q12,
    "gated": _gated,
  },
  base.Granularity: {
    "per_tensor": lambda: numerics.per_tensor,
    "per_output": lambda: numerics.per_output,
    "per_channel": numerics.per_channel,
    "per_block": numerics.per_block,
    "chunks": numerics.chunks,
  },
  base.Estimator: {
    "minmax": lambda: estimate.minmax,
    "fixed": estimate.fixed,
    "absmax": lambda: estimate.absmax,
    "percentile": estimate.percentile,
    "mse": functools.partial(estimate.mse, None, None, None),
    "mse_golden": estimate.mse_golden,
    "mse_ends": estimate.mse_ends,
    "cosine": estimate.cosine,
    "mean_magnitude": lambda: lsq.mean_magnitude,
    "three_sigma": lambda: lsq.three_sigma,
    "unit_step": lambda: lsq.unit_step,
    "kl": divergence.kl,
    "kl_improved": divergence.kl_improved,
    "by_gradient": estimate.by_gradient,
  },
  base.Observer: {
    "ema": observe.ema,
    "extremes": observe.extremes,
    "deviations": observe.deviations,
    "histogram": observe.histogram,
    "periodic": observe.periodic,
  },
  parameterization.Parameterization: {
    name: functools.partial(lambda kind: kind, kind)
    for name, kind in parameterization.PARAMETERIZATIONS.items()
  },
  base.LevelFitter: {"kmeans": levels.kmeans},
}
QUANTIZERS = FUNCTIONS[base.Quantizer]

_KINDS = {
  base.Quantizer: "quantizer",
  base.Granularity: "granularity",
  base.Estimator: "estimator",
  base.Observer: "observer",
  base.LevelFitter: "level fitter",
  parameterization.Parameterization: "parameterization",
}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_WORDS = {int: "an integer", float: "a number", bool: "True or False"}


class InputError(ValueError):
  """What was asked for cannot be done; the message is one line saying why."""


class Shared:
  """Arguments for every quantizer of a nest that has such a parameter.

  An argument that a quantizer is given by itself counts more.

  Attributes:
    values: plain data by parameter name.
    where: their place in the config, for messages.
    unused: names that no quantizer has taken yet.
  """

  def __init__(self, values: Mapping[str, Plain], where: str):
    self.values = dict(values)
    self.where = where
    self.unused = set(values)

  def take(self, name: str) -> Plain:
    """Returns a value and marks it used."""
    self.unused.discard(name)
    return self.values[name]


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Raises what a person can mend as an `InputError` of one line."""
  try:
    yield
  except InputError:
    raise
  except (ImportError, OSError, TypeError, ValueError) as error:
    line = " ".join(str(error).split())
    raise InputError(line or type(error).__name__) from error


def build(
  plain_: Plain, where: str = "config", shared: Shared | None = None
) -> base.Quantizer:
  """Builds a quantizer from plain data.

  Args:
    plain_: a call, as in the module's docstring.
    where: its place in the config, for messages.
    shared: arguments for all quantizers of the nest.

  Returns:
    The quantizer.

  Raises:
    InputError: a `ValueError` that names the place in the config, the value and
      what is known there.

  Example:
    >>> import quantlab as ql
    >>> inner = {"method": "lloyd", "bits": 2}
    >>> q = build({"method": "icquant", "inner": inner, "ratio": 0.1})
    >>> ql.quantize(q, jnp.eye(64)).grid.labels.marks
    6
    >>> build({"method": "rtn", "bit": 2})
    Traceback (most recent call last):
    ...
    quantlab.experiments.configs.InputError: config.bit: rtn has no such
    argument; did you mean 'bits'? Known: bits, symmetric, narrow, tight,
    exact_zero, granularity, estimator, observer, hindsight, learned,
    stochastic, dtype
  """
  shared = shared or Shared({}, where)
  known = dict.fromkeys(
    name
    for f in QUANTIZERS.values()
    for name in inspect.signature(f).parameters
  )
  for name in shared.unused - known.keys():
    problem = "no quantizer has such an argument"
    raise unknown(f"{shared.where}.{name}", problem, name, known)
  quantizer = _make(base.Quantizer, plain_, where, shared)
  for name in shared.unused:
    problem = f"{plain_!r} does not use it"
    used = shared.values.keys() - shared.unused
    raise unknown(f"{shared.where}.{name}", problem, name, used)
  return quantizer


def bind(
  function: Callable[..., Any],
  named: Mapping[str, Plain],
  where: str,
  *positional: Plain,
  name: str = "",
  shared: Shared | None = None,
) -> inspect.BoundArguments:
  """Checks arguments against a signature and converts them.

  Args:
    function: its parameters are annotated.
    named: plain arguments by name.
    where: their place in the config.
    *positional: plain arguments by position.
    name: what messages call the function.
    shared: further arguments, for quantizers.

  Returns:
    `args` and `kwargs` to call it with.

  Raises:
    InputError: an argument is unknown, missing or of another type.
  """
  name = name or where
  signature = inspect.signature(function)
  known = signature.parameters
  for key in named:
    if key not in known:
      raise unknown(
        f"{where}.{key}", f"{name} has no such argument", key, known
      )
  places = {key: f"{where}.{key}" for key in known}
  given = dict(named)
  for key in (
    shared.values if shared else {}
  ).keys() & known.keys() - named.keys():
    if shared is not None:
      given[key], places[key] = shared.take(key), f"{shared.where}.{key}"
  try:
    bound = signature.bind(*positional, **given)
  except TypeError as error:
    raise InputError(
      f"{where}: {name}: {error}. Known: {', '.join(known)}"
    ) from None
  for key, value in bound.arguments.items():
    kind = known[key].annotation
    many = known[key].kind is inspect.Parameter.VAR_POSITIONAL
    convert = functools.partial(
      _convert, kind=kind, where=places[key], shared=shared
    )
    bound.arguments[key] = (
      tuple(map(convert, value)) if many else convert(value)
    )
  return bound


def plain(config: Any, where: str = "config") -> Plain:
  """Copies a config (an `ml_collections.ConfigDict`, a dict) to plain data.

  Tuples become lists, as JSON would make them, so that a config compares equal
  to its stored form.

  Raises:
    InputError: something in it is not plain data.
  """
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  if isinstance(config, Mapping):
    return {str(k): plain(v, f"{where}.{k}") for k, v in config.items()}
  if isinstance(config, list | tuple):
    return [plain(v, f"{where}[{i}]") for i, v in enumerate(config)]
  if config is None or isinstance(config, bool | int | float | str):
    return config
  raise InputError(
    f"{where}: a config holds plain data, got {type(config).__name__}"
  )


def parse(
  plain_: Plain, where: str, what: str
) -> tuple[str, list[Plain], dict[str, Plain]]:
  """Splits a call into its name, positional and named arguments."""
  if isinstance(plain_, str):
    return plain_, [], {}
  if isinstance(plain_, list | tuple) and plain_ and isinstance(plain_[0], str):
    return plain_[0], list(plain_[1:]), {}
  if isinstance(plain_, Mapping) and isinstance(plain_.get("method"), str):
    named = {k: v for k, v in plain_.items() if k != "method"}
    return plain_["method"], [], named
  raise InputError(
    f"{where}: a {what} is a name, a list of a name and arguments, or a dict "
    f"with 'method' and arguments, got {plain_!r}"
  )


def unknown(where: str, problem: str, name: Any, known: Any) -> InputError:
  """An error about a name, with the closest known one and all of them."""
  known = [str(k) for k in known]
  close = difflib.get_close_matches(str(name), known, 1)
  hint = f"; did you mean {close[0]!r}?" if close else "."
  return InputError(f"{where}: {problem}{hint} Known: {', '.join(known)}")


def _make(kind: Any, plain_: Plain, where: str, shared: Shared | None) -> Any:
  """Runs a call that must give a value of a kind of `FUNCTIONS`."""
  name, positional, named = parse(plain_, where, _KINDS[kind])
  functions = FUNCTIONS[kind]
  if name not in functions:
    place = f"{where}.method" if isinstance(plain_, Mapping) else where
    problem = f"unknown {_KINDS[kind]} {name!r}"
    raise unknown(place, problem, name, functions)
  if kind is not base.Quantizer:
    shared = None
  bound = bind(
    functions[name], named, where, *positional, name=name, shared=shared
  )
  try:
    return functions[name](*bound.args, **bound.kwargs)
  except (TypeError, ValueError) as error:
    raise InputError(f"{where}: {error}") from error


def _convert(value: Plain, kind: Any, where: str, shared: Shared | None) -> Any:
  """Turns plain data into what an annotation asks for."""
  if kind == jax.typing.DTypeLike:
    return _dtype(value, where)
  if typing.get_origin(kind) in (typing.Union, types.UnionType):
    options = typing.get_args(kind)
    if value is None and type(None) in options:
      return None
    kind = next(option for option in options if option is not type(None))
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, list | tuple):
      raise InputError(f"{where}: expected a list, got {value!r}")
    item = typing.get_args(kind)[0]
    return tuple(
      _convert(x, item, f"{where}[{i}]", None) for i, x in enumerate(value)
    )
  if kind in FUNCTIONS:
    return _make(kind, value, where, shared)
  return _scalar(value, kind, where)


def _scalar(value: Plain, kind: Any, where: str) -> Any:
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    words = _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
    raise InputError(f"{where}: expected {words}, got {value!r}")
  return value


def _dtype(value: Plain, where: str) -> Any:
  if value not in _FLOATS:
    raise unknown(where, f"{value!r} is no type of floats", value, _FLOATS)
  return jnp.dtype(value)
