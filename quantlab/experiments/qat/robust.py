"""Scores of a trained model whose stored weights have bit errors."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from quantlab.experiments import workdir
from quantlab.experiments.faults import bit_errors


@dataclasses.dataclass(frozen=True)
class Robustness:
  """The section `robustness` of a config.

  Attributes:
    rates: probabilities that a stored bit is wrong.
    patterns: of errors, the same for all models and rates.
    protect: parts without errors, see `core.flips`; the ranges in the paper.
  """

  rates: tuple[float, ...] = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1)
  patterns: int = 50
  protect: tuple[str, ...] = ("grid",)

  def __post_init__(self):
    bit_errors.check(self.rates)
    if self.patterns < 1:
      raise ValueError(f"patterns={self.patterns} has to be at least 1")


def score(
  settings: Robustness,
  logits: Callable[[Any, Any], Any],
  params: Any,
  batches: Sequence[tuple[Any, Any]],
  folder: pathlib.Path,
) -> dict[str, float]:
  """Test errors under bit errors, stored as `robustness.json`.

  Args:
    settings: the section.
    logits: `logits(params, inputs)`, pure.
    params: packed.
    batches: inputs and labels of the test.
    folder: of the run.

  Returns:
    The mean error over the patterns by rate, as `error@rate`: of the model
    under errors alone.
  """
  inputs, labels = (
    np.concatenate([batch[i] for batch in batches]) for i in (0, 1)
  )

  def predict(params):
    return bit_errors.classes(logits(params, inputs))

  found = bit_errors.evaluate(
    predict,
    params,
    jnp.asarray(labels),
    settings.rates,
    patterns=settings.patterns,
    protect=settings.protect,
  )
  workdir.write_json(
    folder / "robustness.json",
    {
      "rates": list(settings.rates),
      "clean": found.clean,
      **{
        name: {k: np.asarray(v).tolist() for k, v in spread._asdict().items()}
        for name, spread in (("alone", found.alone), ("either", found.either))
      },
    },
  )
  return {
    f"error@{rate:g}": float(mean)
    for rate, mean in zip(settings.rates, found.alone.mean, strict=True)
  }
