"""The equations of a model, from shapes alone, and how often each runs."""

from collections.abc import Callable, Iterator, Sequence
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax.extend import core as jex
from jax.interpreters import partial_eval

from quantlab.apply import linen, taps

PyTree = Any


class Step(NamedTuple):
  """An equation of a traced model.

  Attributes:
    eqn: of the jaxpr.
    times: how often it runs; infinity in a while loop.
    depends: whether it reads what depends on a variable of the model.
  """

  eqn: Any
  times: float
  depends: bool


def steps(
  model: nn.Module,
  variables: PyTree,
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  interceptor: Callable[..., Any],
) -> Iterator[Step]:
  """The equations of a model, and of what is inside them."""
  leaves, tree = jax.tree.flatten((args, kwargs))
  arrays = {i: x for i, x in enumerate(leaves) if hasattr(x, "shape")}
  token = taps.token("cost", object())  # nothing is found compiled

  def run(variables, arrays):
    values = [arrays.get(i, x) for i, x in enumerate(leaves)]
    args, kwargs = jax.tree.unflatten(tree, values)
    with nn.intercept_methods(interceptor):
      out, _ = linen.run(_same, model, variables, args, kwargs, {}, token)
    return [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array)]

  jaxpr = jax.make_jaxpr(run)(variables, arrays).jaxpr
  # flax traces the body of a scan once more than it runs, for its shapes.
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), True)
  count = len(jax.tree.leaves(variables))
  return _walk(jaxpr, [i < count for i in range(len(jaxpr.invars))], 1)


def plain(next_method, args, kwargs, context):
  """An interceptor that changes nothing."""
  return next_method(*args, **kwargs)


def _same(module, end, x):
  return x


def _walk(
  jaxpr: jex.Jaxpr, depends: Sequence[bool], times: float
) -> Iterator[Step]:
  known = dict(zip(jaxpr.invars, depends, strict=True))
  for eqn in jaxpr.eqns:
    reads = [
      not isinstance(var, jex.Literal) and known.get(var, False)
      for var in eqn.invars
    ]
    some = any(reads)
    known.update(dict.fromkeys(eqn.outvars, some))
    yield Step(eqn, times, some)
    steps = times
    if eqn.primitive.name == "scan":
      steps *= eqn.params["length"]
    elif eqn.primitive.name == "while":
      steps = math.inf
    for inner in jex.jaxprs_in_params(eqn.params):
      yield from _walk(inner, _entering(eqn, inner, reads), steps)


def _entering(eqn: Any, inner: Any, reads: Sequence[bool]) -> list[bool]:
  """Which inputs of a jaxpr inside an equation depend on a variable."""
  if eqn.primitive.name == "cond":
    return list(reads[1:])  # without the index of the branch
  some = any(reads)
  if len(reads) != len(inner.invars) or eqn.primitive.name == "while":
    return [some] * len(inner.invars)
  if eqn.primitive.name != "scan":
    return list(reads)
  # What is carried may depend from the second step on; slices never do.
  return [
    read if outer.aval.ndim > var.aval.ndim else some
    for read, outer, var in zip(reads, eqn.invars, inner.invars, strict=True)
  ]


def known(name: str, step: Step) -> int:
  """How often a step runs; refuses one in a while loop."""
  if step.times == math.inf:
    raise ValueError(f"{name}: in a while loop, whose length is not known")
  return int(step.times)
