"""Which variants are worth their bits: the Pareto front of rate and quality."""

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

from quantlab.experiments.tasks import base


class Point(NamedTuple):
  """A variant.

  Attributes:
    rate: stored bits per weight.
    quality: more is better.
  """

  rate: float
  quality: float

  def dominates(self, other: "Point") -> bool:
    """Whether this takes no more bits, is no worse, and is not the same."""
    return (
      self != other
      and self.rate <= other.rate
      and self.quality >= other.quality
    )


def point(row: Mapping[str, Any], metric: base.Metric) -> Point:
  """A row of results as a point; a score that is None stands for no loss."""
  score = row[metric.key]
  if score is None:
    return Point(row["bits_per_weight"], math.inf)
  return Point(row["bits_per_weight"], -score if metric.falls else score)


def dominators(points: Mapping[str, Point]) -> dict[str, str]:
  """Says for each variant which one to take instead.

  Args:
    points: by variant.

  Returns:
    By variant, in the same order, the best of those that dominate it, which is
    on the front itself; "" for a variant on the front.

  Example:
    >>> points = {"a": Point(2, 0.5), "b": Point(3, 0.4), "c": Point(4, 0.9)}
    >>> dominators(points)
    {'a': '', 'b': 'a', 'c': ''}
  """

  def worth(name):
    # Of equal quality the one of fewest bits: nothing dominates that.
    return points[name].quality, -points[name].rate

  def best(one):
    better = [name for name in points if points[name].dominates(one)]
    return max(better, key=worth, default="")

  return {name: best(one) for name, one in points.items()}


def front(points: Mapping[str, Point]) -> list[str]:
  """The variants on the front, from few bits to many.

  Example:
    >>> front({"c": Point(4, 0.9), "a": Point(2, 0.5), "b": Point(3, 0.4)})
    ['a', 'c']
  """
  found = [name for name, other in dominators(points).items() if not other]
  return sorted(found, key=points.__getitem__)
