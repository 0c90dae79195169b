from hypothesis import given
from hypothesis import strategies as st
import pytest

from quantlab.experiments import pareto
from quantlab.experiments.tasks import base

POINTS = {
  "cheap": pareto.Point(2, 0.3),
  "wasteful": pareto.Point(3, 0.3),
  "better": pareto.Point(3, 0.8),
  "twin": pareto.Point(3, 0.8),
  "worse": pareto.Point(4, 0.5),
  "same for more": pareto.Point(5, 0.8),
  "best": pareto.Point(8, 0.9),
}


def test_front_by_hand():
  assert pareto.front(POINTS) == ["cheap", "better", "twin", "best"]
  assert pareto.dominators(POINTS) == {
    "cheap": "",
    "wasteful": "better",
    "better": "",
    "twin": "",
    "worse": "better",
    "same for more": "better",
    "best": "",
  }


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_who_dominates_is_on_the_front(pairs):
  points = {str(i): pareto.Point(*pair) for i, pair in enumerate(pairs)}
  front, dominators = pareto.front(points), pareto.dominators(points)
  assert front
  for name, by in dominators.items():
    assert (name in front) == (not by)
    if by:
      assert by in front
      assert points[by].dominates(points[name])
  rates = [points[name].rate for name in front]
  assert rates == sorted(rates)


@pytest.mark.parametrize(("falls", "quality"), [(False, 3.0), (True, -3.0)])
def test_quality_rises(falls, quality):
  metric = base.Metric("x", "x", falls=falls)
  found = pareto.point({"x": 3.0, "bits_per_weight": 2.5}, metric)
  assert found == pareto.Point(2.5, quality)


def test_no_loss_is_the_best():
  metric = base.Metric("x", "x")
  exact = pareto.point({"x": None, "bits_per_weight": 2.5}, metric)
  assert exact.dominates(pareto.Point(2.5, 1e9))
