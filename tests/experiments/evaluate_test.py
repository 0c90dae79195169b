import math

import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.data import retrieval
from quantlab.experiments import evaluate, ptq
from tests import tiny_bert

# Three queries, three documents, in the plane.
FOUND = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [1, 0.5], [0, 1]], np.float32)
EXACT = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [0, 1], [1, 1]], np.float32)


def test_compare_by_hand():
  # FOUND's scores: [1, 1, 0], [0, .5, 1], [1, 1.5, 1], so the ranks are 2 (a
  # tie counts against), 2, 3 and the first documents 0, 2, 1. EXACT's scores:
  # [1, 0, 1], [0, 1, 1], [0, 1, 1], so its first documents are 0, 1, 1.
  found = evaluate.compare(FOUND, EXACT)
  assert found["recall_at_1"] == 0
  assert found["mrr"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
  assert found["agreement"] == pytest.approx(2 / 3)
  half = 1 / math.sqrt(2)
  cosines = [1, 1, half, 1, 0.5 / math.sqrt(1.25), half]
  assert found["cosine"] == pytest.approx(np.mean(cosines))


def test_cosine_of_a_row_of_zeros_is_zero():
  assert evaluate.cosine(np.array([[0.0, 0], [2, 0]]), np.ones((2, 2))) == (
    pytest.approx(0.5 / math.sqrt(2))
  )


def test_damage_by_hand():
  x, y = jnp.array([[1.0, -2.0], [2.0, 4.0]]), jnp.array([[1, -1.5], [2, 3]])
  error = evaluate.damage(x, y)
  assert error == evaluate.Error(signal=25, noise=1.25, worst=1)
  assert evaluate.sqnr(error) == pytest.approx(10 * math.log10(20))


def test_sqnr_of_a_model_pools_its_tensors():
  parts = [evaluate.Error(99, 0.5, 0.1), evaluate.Error(1, 0.5, 0.7)]
  error = evaluate.total(parts)
  assert error == evaluate.Error(100, 1, 0.7)
  assert evaluate.sqnr(error) == 20  # not the mean of 23 and 3
  assert evaluate.total([]) == evaluate.Error(0, 0, 0)


def test_sqnr_of_no_damage_is_none():
  assert evaluate.sqnr(evaluate.damage(jnp.ones(3), jnp.ones(3))) is None


@pytest.mark.parametrize(
  "quantizer",
  [ql.rtn(3), ql.icquant(ql.lloyd(2)), ql.easyquant(3, sigmas=1.5)],
)
def test_decode_is_dequantize_to_the_bit(quantizer):
  w = jnp.sin(jnp.arange(64 * 32.0) ** 1.5).reshape(64, 32) ** 3
  tree = {"a": ql.quantize(quantizer, w), "b": jnp.ones(3)}
  found, expected = evaluate.decode(tree), ql.dequantize(tree)
  assert found.keys() == expected.keys()
  for name in found:
    np.testing.assert_array_equal(found[name], expected[name])


def test_embedder_keeps_the_order_of_texts(tmp_path):
  encoder = ptq.pretrained_encoder(str(tiny_bert.write(tmp_path / "model")))
  queries = ["the cat", "a", "the red dog runs a"]
  documents = ["the old blue cat sleeps", "dog", "new"]
  pairs = retrieval.Pairs(queries, documents, "here", "0")
  steps = []

  def track(batches):
    steps.append(len(batches))
    return batches

  embed = evaluate.embedder(encoder, evaluate.Task(pairs, batch_size=4))
  found = embed(encoder.params, track)
  assert steps == [2]
  for text, vector in zip([*queries, *documents], found, strict=True):
    ids, mask = encoder.encode([text])
    hidden = encoder.model.apply({"params": encoder.params}, ids, mask)
    expected = encoder.pool(hidden, mask)[0]
    np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_task_reads_the_section(tmp_path):
  file = tiny_bert.write_pairs(tmp_path / "pairs.csv")
  task = evaluate.task(source=str(file), limit=3, seed=1, batch_size=7)
  assert task.batch_size == 7
  assert len(task.pairs) == 3
  assert set(zip(task.pairs.queries, task.pairs.documents, strict=True)) < set(
    tiny_bert.PAIRS
  )
  with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
    evaluate.task(source=str(file), batch_size=0)
