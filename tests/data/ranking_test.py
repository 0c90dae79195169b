import numpy as np
import pytest

from quantlab.data import ranking


def test_rank_counts_better_documents():
  documents = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
  queries = np.array([[1.0, 0.0], [0.5, 0.9], [1.0, 0.1]])
  # Scores of the queries: [1, 0, .6], [.5, .9, 1.02], [1, .1, .68].
  assert ranking.rank(queries, documents).tolist() == [1, 2, 2]


def test_rank_agrees_with_sorting():
  generator = np.random.default_rng(0)
  queries, documents = generator.normal(size=(2, 20, 5))
  expected = [
    1 + np.argsort(-(documents @ q)).tolist().index(i)
    for i, q in enumerate(queries)
  ]
  assert ranking.rank(queries, documents).tolist() == expected
  assert len(set(expected)) > 5


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_collapsed_model_ranks_last(value):
  same = np.full((4, 3), value)
  assert ranking.rank(same, same).tolist() == [4] * 4


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 3\)"):
    ranking.rank(np.ones((2, 3)), np.ones((4, 3)))


def test_recall_and_mrr():
  ranks = np.array([1, 2, 4, 1])
  assert ranking.recall(ranks) == 0.5
  assert ranking.recall(ranks, k=2) == 0.75
  assert ranking.mrr(ranks) == pytest.approx((1 + 0.5 + 0.25 + 1) / 4)
