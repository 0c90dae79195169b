"""Speed and memory of whole models that run from packed weights.

Two models: a language model of bytes, which makes texts one token at a time,
and an encoder, which reads one sentence at a time. Their weights are random,
the same in all layers, of which each holds its own copy: speed and size do not
depend on the values.

All forms of a model run in turn, round after round.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import quantlab as ql
from quantlab.core import base
from quantlab.experiments.bench import timing
from quantlab.models import bert, causal, generation

Params = Any
Program = Callable[[Params, jax.Array], Any]

SIZES: dict[str, dict[str, Any]] = {
  "small": {
    "bytes": causal.CausalConfig(
      hidden_size=256,
      intermediate_size=1024,
      num_hidden_layers=2,
      head_dim=64,
      gated=False,
      fused=True,
    ),
    "minilm": bert.BertConfig(
      vocab_size=1024,
      hidden_size=384,
      num_hidden_layers=2,
      intermediate_size=1536,
    ),
  },
  # 370 MB of float32, more than caches hold; and those of all-MiniLM-L6-v2.
  "large": {
    "bytes": causal.CausalConfig(
      hidden_size=2048,
      intermediate_size=5632,
      num_hidden_layers=2,
      num_attention_heads=32,
      num_key_value_heads=8,
      head_dim=64,
    ),
    "minilm": bert.BertConfig(
      hidden_size=384, num_hidden_layers=6, intermediate_size=1536
    ),
  },
}
"""Configs of the two models."""

SENTENCE = 32
"""Tokens that the encoder reads at once."""


class Subject(NamedTuple):
  """What runs.

  Attributes:
    params: float32, of the model with one layer.
    layers: of the model.
    program: `program(params, ids)`, of parameters in any form.
    ids: `[1, T]` int32 tokens.
    work: tokens that a call of the program makes or reads.
    calls: for as many tokens as were asked for, at least.
  """

  params: Params
  layers: int
  program: Program
  ids: jax.Array
  work: int
  calls: int


def rounded(quantizer: base.Quantizer) -> Callable[[Params], Params]:
  """Quantizes kernels, and tables in 8 bits; ready to run."""
  table = ql.rtn(8, granularity=ql.per_channel(0))
  plan = ql.by_path(
    [("norm|bias", ql.keep()), ("embedding$", table), ("kernel$", quantizer)]
  )
  return lambda params: ql.prepare(ql.quantize(plan, params))


def _cast(params):
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


FORMS: dict[str, Callable[[Params], Params]] = {
  "float32": lambda params: params,
  "bfloat16": _cast,
  **{f"rtn {n}-bit": rounded(ql.rtn(n)) for n in (8, 4, 3, 2)},
  "icquant 2-bit": rounded(ql.icquant(ql.rtn(2))),
  "easyquant 4-bit": rounded(ql.easyquant(4)),
}
"""How parameters are held."""


def subject(model: str, sizes: str, tokens: int) -> Subject:
  """A model with random weights, and what it does.

  Args:
    model: `"bytes"` or `"minilm"`.
    sizes: a key of `SIZES`.
    tokens: to make or to read; whole sentences of the latter.

  Raises:
    ValueError: there is no such model, or there are no such sizes.
  """
  if sizes not in SIZES:
    raise ValueError(f"{sizes=} is none of {', '.join(SIZES)}")
  if model not in _SUBJECTS:
    raise ValueError(f"{model=} is none of {', '.join(_SUBJECTS)}")
  return _SUBJECTS[model](SIZES[sizes][model], tokens)


def _bytes(config: causal.CausalConfig, tokens: int) -> Subject:
  model, ids = causal.Causal(config), jnp.zeros((1, 1), jnp.int32)

  def program(params, ids):
    step = functools.partial(ql.apply, model, {"params": params})
    cache = causal.empty_cache(config, batch=1, capacity=tokens)
    return generation.generate(step, cache, ids, tokens)[0]

  params = _one_layer(causal.Causal, config, ids)
  return Subject(params, config.num_hidden_layers, program, ids, tokens, 1)


def _minilm(config: bert.BertConfig, tokens: int) -> Subject:
  model = bert.Bert(config)
  ids = jnp.arange(SENTENCE, dtype=jnp.int32)[None]

  def program(params, ids):
    return ql.apply(model, {"params": params}, ids, jnp.ones_like(ids))

  params = _one_layer(bert.Bert, config, ids, ids)
  layers, calls = config.num_hidden_layers, -(-tokens // SENTENCE)
  return Subject(params, layers, program, ids, SENTENCE, calls)


def _one_layer(kind, config, *args):
  model = kind(dataclasses.replace(config, num_hidden_layers=1))
  return jax.jit(model.init)(jax.random.key(0), *args)["params"]


_SUBJECTS = {"bytes": _bytes, "minilm": _minilm}


def held(subject: Subject, form: str) -> Params:
  """The parameters of all layers in a form, a key of `FORMS`."""
  if form not in FORMS:
    raise ValueError(f"{form=} is none of {', '.join(FORMS)}")
  params = dict(FORMS[form](subject.params))
  layer = params.pop("layer_0")
  copies = {
    f"layer_{i}": jax.tree.map(jnp.copy, layer) for i in range(subject.layers)
  }
  return params | copies


def _repeat(subject, compiled, params):
  return [compiled(params, subject.ids) for _ in range(subject.calls)]


def measure(
  model: str,
  forms: Iterable[str] = FORMS,
  *,
  sizes: str = "small",
  rounds: int = 5,
  tokens: int = 64,
) -> dict[str, Any]:
  """Times a model in several forms.

  Args:
    model: `"bytes"` makes a text, `"minilm"` reads sentences.
    forms: keys of `FORMS`.
    sizes: a key of `SIZES`.
    rounds: timed rounds.
    tokens: in a round.

  Returns:
    As `timing.run`, `per_second` being tokens; and for each case
    `params_bytes`, of the parameters as they are held, and `temp_bytes`, what
    the program takes beside them and its results (None where XLA does not
    say).

  Raises:
    ValueError: an unknown name, or `rounds` or `tokens` below 1.
  """
  if tokens < 1 or rounds < 1:
    raise ValueError(f"{tokens=} and {rounds=} must be at least 1")
  found = subject(model, sizes, tokens)
  cases, memory = [], {}
  for name in forms:
    params = held(found, name)
    compiled = jax.jit(found.program).lower(params, found.ids).compile()
    analysis = compiled.memory_analysis()
    memory[name] = {
      "params_bytes": ql.nbits(params) // 8,
      "temp_bytes": analysis.temp_size_in_bytes if analysis else None,
    }
    call = functools.partial(_repeat, found, compiled, params)
    cases.append(timing.Case(name, call, found.work, found.calls))
  results = timing.run(cases, rounds=rounds)
  for name, case in results["cases"].items():
    case |= memory[name]
  return results


def run(
  sizes: str = "large", *, rounds: int = 5, tokens: int = 64
) -> dict[str, Any]:
  """Times both models in all forms.

  Args:
    sizes: a key of `SIZES`.
    rounds: timed rounds.
    tokens: in a round.

  Returns:
    What `measure` returns, by model.
  """
  return {
    model: measure(model, sizes=sizes, rounds=rounds, tokens=tokens)
    for model in _SUBJECTS
  }


def show(results: dict[str, Any]) -> None:
  """Prints results of `run` as tables."""
  from rich import console, table

  for model, found in results.items():
    machine = found["machine"]
    device = f"{machine['device']}, {machine['cores']} cores"
    out = table.Table(title=f"{model}: {device}, jax {machine['jax']}")
    out.add_column("held as")
    for column in ("tokens/s", "times the first", "MB held", "MB beside"):
      out.add_column(column, justify="right")
    first, *_ = found["cases"].values()
    for name, case in found["cases"].items():
      out.add_row(
        name,
        f"{case['per_second']:.1f}",
        f"{case['per_second'] / first['per_second']:.2f}",
        f"{case['params_bytes'] / 1e6:.1f}",
        "" if case["temp_bytes"] is None else f"{case['temp_bytes'] / 1e6:.2f}",
      )
    console.Console().print(out)
