import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.experiments import generation
from quantlab.models import causal
from quantlab.transforms import plan

CONFIG = generation.SIZES["small"]["bytes"]
ENCODER = generation.SIZES["small"]["minilm"]
PACKED = ("rtn 4-bit", "icquant 2-bit", "easyquant 4-bit")


def _dense_bytes(params):
  """Float32 bytes of each kernel."""
  leaves = plan.leaves(jax.eval_shape(ql.dequantize, params))
  return [4 * x.size for path, x in leaves.items() if path.endswith("kernel")]


def _bytes(tree):
  return ql.nbits(tree) // 8


@pytest.fixture(name="step", scope="module")
def _step():
  """One token of the language model, from parameters in any form."""
  model = causal.Causal(CONFIG)
  return jax.jit(
    lambda params, ids, cache: ql.apply(model, {"params": params}, ids, cache)
  )


@pytest.mark.parametrize("form", PACKED)
def test_a_token_takes_no_dense_kernel(step, form):
  subject = generation.subject("bytes", "small", 8)
  params = generation.held(subject, form)
  cache = causal.empty_cache(CONFIG, batch=1, capacity=8)
  compiled = step.lower(params, subject.ids, cache).compile()
  memory = compiled.memory_analysis()
  assert memory.temp_size_in_bytes < max(_dense_bytes(params))
  held = _bytes((params, subject.ids, cache))
  assert memory.argument_size_in_bytes == held
  found, _ = compiled(params, subject.ids, cache)
  expected, _ = step(ql.dequantize(params), subject.ids, cache)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_an_encoder_takes_no_dense_kernel():
  subject = generation.subject("minilm", "small", 1)
  params = generation.held(subject, "rtn 4-bit")
  dense = _dense_bytes(params)
  run = jax.jit(subject.program)

  def compiled(batch, tokens):
    ids = jnp.ones((batch, tokens), jnp.int32)
    return ids, run.lower(params, ids).compile()

  ids, one = compiled(1, 1)
  assert one.memory_analysis().temp_size_in_bytes < max(dense)
  np.testing.assert_allclose(
    one(params, ids), run(ql.dequantize(params), ids), rtol=1e-3, atol=1e-3
  )
  # Beside many more rows kernels are small, and decoded: see `kernels.scan`.
  ids, sentence = compiled(1, 32)
  beside = sentence.memory_analysis().temp_size_in_bytes
  activations = 4 * ids.size * 4 * ENCODER.intermediate_size
  assert beside < max(dense) + activations < sum(dense) / 2


def test_a_run_is_a_row_for_each_form(capsys):
  forms = ("float32", "rtn 4-bit")
  measure = functools.partial(generation.measure, "minilm", rounds=1, tokens=1)
  found = measure(forms)
  assert json.loads(json.dumps(found)) == found
  dense, packed = found["cases"].values()
  for case in (dense, packed):
    assert case["per_second"] * case["seconds"] == pytest.approx(
      generation.SENTENCE
    )
  assert packed["params_bytes"] < dense["params_bytes"] / 5
  generation.show({"minilm": found})
  said = capsys.readouterr().out
  assert all(form in said for form in forms)


def test_generation_is_timed_by_its_tokens():
  found = generation.measure("bytes", ["float32"], rounds=1, tokens=3)
  (case,) = found["cases"].values()
  assert case["per_second"] * case["seconds"] == pytest.approx(3)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"model": "gpt"}, "model='gpt' is none of bytes, minilm"),
    ({"sizes": "tiny"}, "sizes='tiny' is none of small, large"),
    ({"forms": ["int4"]}, "form='int4' is none of float32, bfloat16, rtn"),
    ({"tokens": 0}, "tokens=0 and rounds=5 must be at least 1"),
    ({"rounds": 0}, "tokens=1 and rounds=0 must be at least 1"),
  ],
)
def test_bad_arguments(arguments, message):
  arguments = {"model": "bytes", "forms": ["float32"], "tokens": 1} | arguments
  with pytest.raises(ValueError, match=message):
    generation.measure(**arguments)
