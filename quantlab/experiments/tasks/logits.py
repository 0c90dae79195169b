"""What tasks that tell classes share: scores of logits, and their loss.

Shape letters: N examples, C classes.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from quantlab.experiments import evaluate
from quantlab.experiments.tasks import base


def compare(
  labels: np.ndarray, found: np.ndarray, reference: np.ndarray
) -> dict[str, Any]:
  """Scores logits on their task, and against those of the float model.

  Args:
    labels: `[N]` integers.
    found: `[N, C]`.
    reference: `[N, C]`, of the float model.

  Returns:
    `logits_sqnr_db` and mean `cosine` to the reference, `agreement` with it in
    the first class, and `accuracy`.

  Example:
    >>> x = np.array([[3.0, 1.0], [0.0, 0.0], [1.0, 2.0]])
    >>> found = compare(np.array([0, 1, 1]), x + 0.5, x)
    >>> found["logits_sqnr_db"], found["agreement"], round(found["accuracy"], 3)
    (10.0, 1.0, 0.667)
  """
  first = found.argmax(axis=1)
  noise = float(np.sum((found - reference) ** 2))
  error = evaluate.Error(float(np.sum(reference**2)), noise, 0.0)
  return {
    "logits_sqnr_db": evaluate.sqnr(error),
    "cosine": evaluate.cosine(found, reference),
    "agreement": float(np.mean(first == reference.argmax(axis=1))),
    "accuracy": float(np.mean(first == labels)),
  }


def cross_entropy(
  model: nn.Module, params: base.Params, batch: base.Batch
) -> jax.Array:
  """Of a batch's labels."""
  logits: Any = model.apply({"params": params}, *batch.args)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
  return jnp.mean(losses)


METRICS = (
  base.Metric(
    "logits_sqnr_db",
    "logits\nSQNR dB",
    "{:.2f}",
    axis="SQNR of the logits (dB)",
  ),
  base.Metric("cosine", "cosine\nto float", "{:.4f}"),
  base.Metric("agreement", "top-1 as\nfloat"),
  base.Metric(
    "accuracy", "accuracy", "{:.4f}", axis="accuracy (fraction of examples)"
  ),
)
"""What `compare` returns."""
