"""Measures of a quantized model beside its float original.

A variant runs from its packed tensors (`FORMS["packed"]`), as it would where it
is used: what is judged is what is stored. The model is compiled for each of
them. Decoded once into float parameters (`FORMS["decoded"]`), all variants run
in one compiled model, which is faster where they are many and small. Scores are
the same but for the order in which products are added up.

Shape letters: R rows, one for each input of the model, and D width.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import quantlab as ql
from quantlab.core import qtensor
from quantlab.experiments import configs
from quantlab.experiments.tasks import base

Array = jax.Array
Params = Any

Outputs = Callable[..., np.ndarray]
"""`outputs(params, track, acts, state)`: `[R, ...]` float32.

`track` wraps the batches in an iterator that shows progress; `acts` is a plan
for the activations and `state` its state, as `ql.apply` takes them."""


class Error(NamedTuple):
  """How far a tensor is from its original.

  Attributes:
    signal: sum of the squared original.
    noise: sum of the squared differences.
    worst: the largest absolute difference.
  """

  signal: float
  noise: float
  worst: float


def outputs(task: base.Task) -> Outputs:
  """The outputs of a task's model as a function of parameters in any form."""

  # One function for each plan of activations, whatever the weights are.
  @functools.cache
  def forward(acts):
    @jax.jit
    def run(params, state, *args):
      variables = {"params": params}
      y = ql.apply(task.model, variables, *args, acts=acts, state=state)
      return task.head(y if acts is None else y[0], *args)

    return run

  def outputs(params, track=iter, acts=None, state=None):
    out: dict[int, np.ndarray] = {}
    for batch in track(task.batches):
      found = np.asarray(forward(acts)(params, state, *batch.args), np.float32)
      # The batch may end in filler.
      out.update(zip(batch.rows.tolist(), found, strict=False))
    return np.stack([out[i] for i in range(len(out))])

  return outputs


def cosine(a: np.ndarray, b: np.ndarray) -> float:
  """Mean cosine of the rows of two `[R, D]` arrays; 0 for a row of zeros.

  Example:
    >>> cosine(
    ...   np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [0.0, 1.0]])
    ... )
    0.9
  """
  dot = np.sum(a * b, axis=1)
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  return float(np.mean(dot / np.where(norms > 0, norms, 1)))


def decode(tree: Params) -> Params:
  """`ql.dequantize`, one part of one tensor at a time, each compiled.

  Compiled, a part takes two copies of it as floats at most, and up to seven
  otherwise. In parts, the tensors of a model share their programs: of a sum,
  only the exact part has a size that depends on the data.
  """
  return jax.tree.map(_decoded, tree, is_leaf=qtensor.is_quantized)


def _decoded(x: Any) -> Array:
  if isinstance(x, qtensor.Sum):
    first, *rest = map(_decoded, x.parts)
    return sum(rest, first)
  return _dequantize(x) if qtensor.is_quantized(x) else x


@jax.jit
def _dequantize(x: Any) -> Array:
  return x.dequantize()


FORMS: dict[str, Callable[[Params], Params]] = {
  "packed": ql.prepare,
  "decoded": decode,
}
"""Forms in which quantized parameters can run."""


def form(config: Mapping[str, Any]) -> Callable[[Params], Params]:
  """What the entry `evaluate` of a plain config names, by default packed.

  Raises:
    InputError: there is no such form.
  """
  name = config.get("evaluate", "packed")
  if name not in [*FORMS]:
    problem = f"there is no form {name!r}"
    raise configs.unknown("config.evaluate", problem, name, FORMS)
  return FORMS[name]


def damage(original: Array, restored: Array) -> Error:
  """Compares a tensor with what is left of it.

  Example:
    >>> damage(jnp.array([3.0, 4.0]), jnp.array([3.0, 4.5]))
    Error(signal=25.0, noise=0.25, worst=0.5)
  """
  return Error(*(float(value) for value in _damage(original, restored)))


@jax.jit
def _damage(original: Array, restored: Array) -> tuple[Array, Array, Array]:
  x, y = (v.astype(jnp.float32) for v in (original, restored))
  worst = jnp.max(jnp.abs(x - y), initial=0)
  return jnp.sum(x * x), jnp.sum((x - y) ** 2), worst


def total(errors: Sequence[Error]) -> Error:
  """The error of several tensors as if they were one."""
  signal, noise, worst = zip(*errors, strict=True) if errors else ((), (), ())
  return Error(sum(signal), sum(noise), max(worst, default=0.0))


def sqnr(found: Error) -> float | None:
  """Signal to quantization noise in dB; None where nothing was lost.

  Example:
    >>> sqnr(Error(signal=100.0, noise=1.0, worst=1.0))
    20.0
  """
  if not found.noise:
    return None
  ratio = found.signal / found.noise
  return float(10 * np.log10(ratio)) if ratio else -float("inf")
