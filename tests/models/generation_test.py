import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.models import causal, generation, positions
from tests import draws

LLAMA = causal.CausalConfig(
  vocab_size=11,
  hidden_size=8,
  num_hidden_layers=2,
  num_key_value_heads=2,
  head_dim=4,
  intermediate_size=12,
)
BLOOM = dataclasses.replace(
  LLAMA,
  num_key_value_heads=4,
  position=positions.Alibi(),
  hidden_act="gelu_pytorch_tanh",
  rms_norm=False,
  gated=False,
  biased=True,
  fused=True,
  embedding_norm=True,
)
CONFIGS = {
  "llama": LLAMA,
  "llama_tied": dataclasses.replace(LLAMA, tied=True),
  "bloom": BLOOM,
  "bloom_tied": dataclasses.replace(BLOOM, tied=True),
}
IDS = jnp.array([[5, 3, 7, 4, 3, 9], [6, 2, 1, 1, 8, 0]])
MODEL = causal.Causal(LLAMA)


def _params(config):
  shapes = jax.eval_shape(causal.Causal(config).init, jax.random.key(0), IDS)
  return draws.like(shapes["params"], 0.5)


PARAMS = _params(LLAMA)


@functools.partial(jax.jit, static_argnames=("count", "temperature"))
def _generate(params, prompt, count, temperature=0.0, key=None):
  step = functools.partial(ql.apply, MODEL, {"params": params})
  cache = causal.empty_cache(LLAMA, batch=len(prompt), capacity=9)
  return generation.generate(
    step, cache, prompt, count, temperature=temperature, key=key
  )


@pytest.mark.parametrize(
  "name",
  [
    "llama",
    "bloom_tied",
    *(
      pytest.param(name, marks=pytest.mark.study)
      for name in ("llama_tied", "bloom")
    ),
  ],
)
def test_token_by_token_is_the_whole_text(name):
  config = CONFIGS[name]
  model, variables = causal.Causal(config), {"params": _params(config)}

  @jax.jit
  def run(variables):
    cache = causal.empty_cache(config, batch=2, capacity=8)
    first, cache = model.apply(variables, IDS[:, :2], cache)

    def step(cache, token):
      logits, cache = model.apply(variables, token[:, None], cache)
      return cache, logits[:, 0]

    cache, rest = jax.lax.scan(step, cache, IDS[:, 2:].T)
    found = jnp.concatenate([first, rest.swapaxes(0, 1)], 1)
    return found, model.apply(variables, IDS), cache.length

  found, expected, length = run(variables)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert length == IDS.shape[1]


def test_past_the_capacity_logits_are_nan():
  @jax.jit
  def run(params):
    cache = causal.empty_cache(LLAMA, batch=2, capacity=7)
    first, cache = MODEL.apply({"params": params}, IDS, cache)
    return first, MODEL.apply({"params": params}, IDS, cache)[0]

  first, beyond = run(PARAMS)
  assert np.isfinite(first).all()
  assert np.isnan(beyond).all()


def test_a_cache_may_be_narrower_than_the_model():
  cache = causal.empty_cache(LLAMA, batch=2, capacity=6, dtype=jnp.bfloat16)
  run = jax.jit(MODEL.apply)
  found, cache = run({"params": PARAMS}, IDS, cache)
  assert cache.layers[0].keys.dtype == jnp.bfloat16
  np.testing.assert_allclose(found, run({"params": PARAMS}, IDS), atol=0.1)


def test_greedy_takes_the_likeliest_of_the_whole_text():
  made, cache = _generate(PARAMS, IDS[:, :3], 6)
  assert made.shape == (2, 6)
  assert cache.length == 3 + 6 - 1
  text = jnp.concatenate([IDS[:, :3], made], 1)
  logits = jax.jit(MODEL.apply)({"params": PARAMS}, text)
  np.testing.assert_array_equal(made, jnp.argmax(logits, -1)[:, 2:-1])


def test_tokens_are_drawn_from_the_softmax():
  prompt = jnp.broadcast_to(IDS[:1, :3], (4000, 3))
  made, _ = _generate(PARAMS, prompt, 1, 2.0, jax.random.key(0))
  again, _ = _generate(PARAMS, prompt, 1, 2.0, jax.random.key(0))
  other, _ = _generate(PARAMS, prompt, 1, 2.0, jax.random.key(1))
  np.testing.assert_array_equal(made, again)
  assert (made != other).any()
  logits = jax.jit(MODEL.apply)({"params": PARAMS}, prompt[:1])[0, -1]
  counts = np.bincount(made[:, 0], minlength=11) / 4000
  np.testing.assert_allclose(counts, jax.nn.softmax(logits / 2), atol=0.04)


@pytest.mark.parametrize(
  ("count", "options", "message"),
  [
    (0, {}, "count=0 must be at least 1"),
    (8, {}, "cache for 9 tokens is too short for a prompt of 3 and count=8"),
    (2, {"temperature": 0.5}, "at temperature=0.5 takes a key"),
    (2, {"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
  ],
)
def test_bad_arguments(count, options, message):
  with pytest.raises(ValueError, match=message):
    _generate(PARAMS, IDS[:, :3], count, **options)
