import math

import jax
import numpy as np
import pytest

from quantlab.experiments import evaluate
from quantlab.experiments.tasks import retrieval
from quantlab.transforms import plan
from tests import tiny_bert

# Three queries, three documents, in the plane.
FOUND = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [1, 0.5], [0, 1]], np.float32)
EXACT = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [0, 1], [1, 1]], np.float32)


@pytest.fixture(name="sections", scope="module")
def _sections(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  file = tiny_bert.write_pairs(folder / "pairs.csv")
  model = retrieval.Model(str(tiny_bert.write(folder / "model")))
  return model, retrieval.Data(str(file), limit=2, batch_size=3)


@pytest.fixture(name="task", scope="module")
def _task(sections):
  return retrieval.load(*sections, None, None)


def test_compare_by_hand():
  # FOUND's scores: [1, 1, 0], [0, .5, 1], [1, 1.5, 1], so the ranks are 2 (a
  # tie counts against), 2, 3 and the first documents 0, 2, 1. EXACT's scores:
  # [1, 0, 1], [0, 1, 1], [0, 1, 1], so its first documents are 0, 1, 1.
  found = retrieval.compare(FOUND, EXACT)
  assert found["recall_at_1"] == 0
  assert found["mrr"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
  assert found["agreement"] == pytest.approx(2 / 3)
  half = 1 / math.sqrt(2)
  cosines = [1, 1, half, 1, 0.5 / math.sqrt(1.25), half]
  assert found["cosine"] == pytest.approx(np.mean(cosines))


def test_outputs_are_the_embeddings_of_the_texts_in_order(sections, task):
  model, data = sections
  encoder = retrieval.checkpoint.load(model.path)
  pairs = data.pairs()
  assert set(zip(pairs.queries, pairs.documents, strict=True)) < set(
    tiny_bert.PAIRS
  )
  found = evaluate.outputs(task)(task.params)
  texts = [*pairs.queries, *pairs.documents]
  for text, vector in zip(texts, found, strict=True):
    ids, mask = encoder.encode([text])
    hidden = encoder.model.apply({"params": encoder.params}, ids, mask)
    expected = encoder.pool(hidden, mask)[0]
    np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_outline_is_what_is_loaded(sections, task):
  outline = retrieval.outline(*sections)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), task.params)
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), outline.params)
  assert outline.model == task.model


def test_spare_pairs_are_not_evaluated(sections, task):
  model, data = sections
  pairs = data.pairs()
  spare = [
    pair
    for pair in tiny_bert.PAIRS
    if pair[0] not in pairs.queries and pair[1] not in pairs.documents
  ]
  [batch] = task.spare(1)
  encode = retrieval.checkpoint.load(model.path).encode
  expected = {tuple(encode([text])[0][0]) for pair in spare for text in pair}
  assert {tuple(row) for row in batch.args[0]} == expected
  message = r"2 batches for calibration take 4 pairs, .* has 2; lower config\.d"
  with pytest.raises(ValueError, match=message):
    task.spare(2)


def test_loss_by_hand(task):
  [batch] = task.spare(1)
  embed = evaluate.outputs(task._replace(batches=[batch]))
  queries, documents = np.split(embed(task.params), 2)
  scores = 20 * queries @ documents.T
  expected = -np.log(np.exp(np.diag(scores)) / np.exp(scores).sum(axis=1))
  found, slopes = jax.jit(jax.value_and_grad(task.loss))(task.params, batch)
  assert found == pytest.approx(expected.mean(), rel=1e-4)
  gradients = plan.leaves(slopes)
  for path in tiny_bert.LEAVES:
    assert np.abs(gradients[path]).max() > 0


def test_batch_size_below_one():
  with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
    retrieval.Data(batch_size=0)
