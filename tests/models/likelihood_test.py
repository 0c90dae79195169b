import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.models import causal, causal_checkpoint, likelihood
from tests import draws, tiny_causal


def test_nats_are_of_the_next_token():
  logits = draws.normal((2, 5, 7))
  ids = jnp.array([[0, 3, 6, 2, 2], [5, 5, 1, 0, 4]])
  found = likelihood.nats(logits, ids)
  probability = np.asarray(jax.nn.softmax(logits), np.float64)
  for b in range(2):
    for t in range(4):
      expected = -np.log(probability[b, t, ids[b, t + 1]])
      assert found[b, t] == pytest.approx(expected, rel=1e-5)
  assert found.shape == (2, 4)


def test_nats_are_float32_and_stable():
  logits = jnp.array([[[80, -80], [0, 0]]], jnp.float16)
  found = likelihood.nats(logits, jnp.array([[0, 1]]))
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, [[160.0]])


def test_uniform_model_has_the_perplexity_of_its_vocabulary():
  config = causal.CausalConfig(num_hidden_layers=1)
  model = causal.Causal(config)
  ids = jnp.array([list(b"the quick brown fox")])
  params = jax.jit(model.init)(jax.random.key(0), ids)["params"]
  params["head"]["kernel"] *= 0
  surprise = likelihood.nats(model.apply({"params": params}, ids), ids)
  assert likelihood.perplexity(surprise) == pytest.approx(256, rel=1e-5)


def test_perplexity_is_of_the_mean_of_all_tokens():
  surprise = np.log([[2.0, 8.0], [4.0, 4.0]])
  assert likelihood.perplexity(surprise) == pytest.approx(4)


def test_tails_score_what_follows_the_stem(tmp_path):
  config = tiny_causal.CONFIGS["llama3"]
  loaded = causal_checkpoint.load(tiny_causal.write(tmp_path / "m", config))
  texts = ["One is one", "One is a number"]
  own = likelihood.tails(loaded.encode, ["One is"] * 2, texts)
  ids, _ = loaded.encode(texts)
  assert own.shape == (2, ids.shape[1] - 1)
  # A byte is a token, and one more begins the text.
  for row, text in zip(own, texts, strict=True):
    assert np.flatnonzero(row).tolist() == [*range(6, len(text))]
  run = jax.jit(loaded.model.apply)
  surprise = likelihood.nats(run({"params": loaded.params}, ids), ids)
  changed = ids.copy()
  changed[:, 32:] = 7  # Padding behind the texts counts nowhere.
  other = likelihood.nats(run({"params": loaded.params}, changed), changed)
  found, again = ((np.asarray(x) * own).sum(axis=1) for x in (surprise, other))
  np.testing.assert_allclose(found, again, rtol=1e-6)
