"""What each weight's squared error costs, to second order."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.transforms import plan

Array = jax.Array
PyTree = Any


def sensitivity(
  loss: Callable[[PyTree, Any], Array],
  params: PyTree,
  batches: Iterable[Any],
) -> PyTree:
  """The diagonal of the empirical Fisher information: mean squared gradients.

  Near a minimum a change d of the weights raises the loss by about
  `sum(F * d**2) / 2`. Gradients are squared batch by batch, so it is the Fisher
  information of examples where a batch holds one.

  Args:
    loss: `loss(params, batch) -> scalar`, a mean over the batch.
    params: a pytree of float arrays.
    batches: what `loss` takes, one after the other, of equal shapes.

  Returns:
    A tree like `params`, float32, for `ql.quantize(..., sensitivity=)`.

  Raises:
    ValueError: there are no batches, or a gradient is NaN or Inf; it names the
      batch and the leaf.

  Example:
    >>> import quantlab as ql
    >>> params = {"kernel": jnp.array([[1.0], [2.0]])}
    >>> def loss(params, x):
    ...   return jnp.sum(x @ params["kernel"])
    >>> found = sensitivity(loss, params, [jnp.eye(2), 3 * jnp.eye(2)])
    >>> found["kernel"].tolist()
    [[5.0], [5.0]]
    >>> q = ql.quantize(ql.lloyd(2), params, sensitivity=found)

  References:
    SqueezeLLM, arXiv 2306.07629, whose k-means ICQuant's tables imitate.
  """

  @jax.jit
  def add(total, batch):
    gradients = jax.grad(loss)(params, batch)
    squares = jax.tree.map(lambda g: g.astype(jnp.float32) ** 2, gradients)
    return jax.tree.map(jnp.add, total, squares)

  total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
  count = 0
  for count, batch in enumerate(batches, start=1):
    total = add(total, batch)
    for path, leaf in plan.leaves(total).items():
      if not jnp.isfinite(jnp.sum(leaf)):
        raise ValueError(f"{path}: batch {count} has a gradient of NaN or Inf")
  if not count:
    raise ValueError("a sensitivity needs at least one batch, got none")
  return jax.tree.map(lambda x: x / count, total)
