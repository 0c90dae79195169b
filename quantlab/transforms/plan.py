"""Plans: which leaf of a pytree gets which quantizer.

A `Plan` is a quantizer of trees. Its state is `State(learned={path: ...},
stats={path: ...})`, so `learned` goes straight into optax, and both into orbax.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantlab.core import base, gates, qtensor
from quantlab.transforms import compose, store

Array = jax.Array
PyTree = Any
Quantizer = base.Quantizer
State = base.State
Rules = Sequence[tuple[str, Quantizer]]


class Plan(NamedTuple):
  """A quantizer of trees: `init` and `apply` take and return whole trees.

  Attributes:
    init: `init(tree) -> State`, with a dict by path in each field.
    apply: `apply(tree, state, key=None) -> (tree, stats)`.
    assign: `assign(tree) -> {path: quantizer}` for every leaf.
    unused: `unused(tree) -> [pattern]`, of the rules that would quantize
      something and place nothing.
  """

  init: Callable[[PyTree], State]
  apply: Callable[..., tuple[PyTree, PyTree]]
  assign: Callable[[PyTree], dict[str, Quantizer]]
  unused: Callable[[PyTree], list[str]]


def by_path(rules: Rules) -> Plan:
  """Places quantizers on the leaves of a tree by their path.

  Args:
    rules: pairs of a regular expression and a quantizer. A leaf gets the
      quantizer of the first expression found in its path, such as
      `encoder/layer_0/kernel`. Case does not count, since flax capitalises the
      names it makes up (`Embed_0`).

  Returns:
    A plan.

  Raises:
    ValueError: (when used) a leaf matches no rule. End with `(".*", keep())`
      to keep the rest.

  Example:
    >>> import quantlab as ql
    >>> plan = ql.by_path([("bias", ql.keep()), ("kernel$", ql.rtn(4))])
    >>> params = {"dense": {"kernel": jnp.ones((32, 8)), "bias": jnp.zeros(8)}}
    >>> ql.nbits(ql.quantize(plan, params)["dense"]["kernel"]) // (32 * 8)
    6
  """

  def assign(tree):
    chosen, _ = match(rules, leaves(tree))
    return {path: rules[i][1] for path, i in chosen.items()}

  def unused(tree):
    _, patterns = match(rules, leaves(tree))
    keeping = {rule[0] for rule in rules if rule[1] is compose.keep()}
    return [pattern for pattern in patterns if pattern not in keeping]

  return _plan(assign, unused)


def match(
  rules: Sequence[tuple[str, Any]], paths: Iterable[str]
) -> tuple[dict[str, int], list[str]]:
  """Finds the first rule of each path.

  Args:
    rules: pairs that start with a regular expression.
    paths: of the leaves.

  Returns:
    The index of each path's rule, and the expressions that no path uses.

  Raises:
    ValueError: a path matches no rule, or an expression is not valid.
  """
  patterns = [_compiled(rule[0]) for rule in rules]
  chosen = {}
  for path in paths:
    found = (i for i, p in enumerate(patterns) if p.search(path))
    index = next(found, None)
    if index is None:
      known = [rule[0] for rule in rules]
      raise ValueError(
        f"{path or 'the leaf'}: matches no rule of {known}; "
        "end with ('.*', keep()) to keep the rest as it is"
      )
    chosen[path] = index
  used = set(chosen.values())
  return chosen, [r[0] for i, r in enumerate(rules) if i not in used]


def chain(*quantizers: Any) -> Any:
  """Runs quantizers in series, each on what the one before it made.

  Args:
    *quantizers: of tensors, of trees (plans), or both: next to a plan, a
      quantizer of tensors is placed on every leaf.

  Returns:
    A quantizer, or a plan if any of them is one.

  Example:
    >>> import quantlab as ql
    >>> int4 = chain(
    ...   ql.fit(ql.minmax, ql.INT4, ql.per_channel(-1)), ql.nearest()
    ... )
    >>> int4.apply(jnp.ones((2, 3)), int4.init(jnp.ones((2, 3))), None)[0].shape
    (2, 3)
  """
  if not any(isinstance(q, Plan) for q in quantizers):
    return compose.series(*quantizers)
  plans = [as_plan(q) for q in quantizers]

  def assign(tree):
    placed = [plan.assign(tree) for plan in plans]
    return {path: _series(*(p[path] for p in placed)) for path in placed[0]}

  def unused(tree):
    return [pattern for plan in plans for pattern in plan.unused(tree)]

  return _plan(assign, unused)


def as_plan(quantizer: Any) -> Plan:
  """A plan as it is; a quantizer of tensors, placed on every leaf."""
  if isinstance(quantizer, Plan):
    return quantizer
  return by_path([("", quantizer)])


def quantize(
  quantizer: Any,
  tree: PyTree,
  *,
  state: State | None = None,
  key: Array | None = None,
  sensitivity: PyTree = None,
) -> PyTree:
  """Quantizes a tree once and stores it: init, apply, pack.

  Leaf by leaf, each under `jit`, so that beside the tree there is never more
  than one leaf's work in memory. With the state of a training the result
  dequantizes to the very values that its loss saw.

  Args:
    quantizer: a plan, or a quantizer for every leaf.
    tree: a pytree of float arrays (params, `nnx.State`, one array).
    state: of the plan, or of the quantizer if the tree is one array, as its
      `init` and a training left it; None starts from the tree.
    key: for random stages.
    sensitivity: a tree like it of what each weight's squared error counts, at
      least 0; `ql.sensitivity` makes one. Without it all count alike. It moves
      the levels of tables, and the ranges of estimators that look at errors.

  Returns:
    The tree with quantized leaves; kept leaves are unchanged.

  Raises:
    ValueError: a leaf holds NaN or Inf or is empty, or does not fit its
      quantizer; the message starts with the leaf's path. Or no leaf matches a
      rule that would quantize it.
    TypeError: a leaf that is not kept is not a float array.

  Example:
    >>> import quantlab as ql
    >>> q = quantize(ql.icquant(ql.rtn(2)), jnp.eye(64))
    >>> jnp.abs(ql.dequantize(q) - jnp.eye(64)).max().item()
    0.0
  """
  plan = as_plan(quantizer)
  assigned = plan.assign(tree)
  unused = plan.unused(tree)
  if unused and all(q is compose.keep() for q in assigned.values()):
    raise ValueError(
      f"nothing is quantized: no leaf matches {unused}; the leaves are "
      f"{[*assigned]}"
    )
  keys = _keys(key, len(assigned))
  weights = {} if sensitivity is None else leaves(sensitivity)
  states = {} if state is None else _by_path(quantizer, state)

  def one(path, leaf, leaf_key):
    with naming(path):
      weight, known = weights.get(path), states.get(path)
      if weights and weight is None:
        raise ValueError(f"has no sensitivity; there are {[*weights]}")
      if state is not None and known is None:
        raise ValueError(f"has no state; there are {[*states]}")
      return quantize_leaf(assigned[path], leaf, leaf_key, weight, known)

  done = [
    one(*item) for item in zip(assigned, _values(tree), keys, strict=True)
  ]
  return jax.tree.unflatten(_structure(tree), done)


def quantize_leaf(
  quantizer: Quantizer,
  x: Any,
  key: Array | None = None,
  sensitivity: Array | None = None,
  state: State | None = None,
) -> Any:
  """Quantizes and stores one tensor; see `quantize`."""
  if quantizer is compose.keep():
    return x
  check(x)
  if sensitivity is not None:
    x = weighted(x, sensitivity)
  if state is not None and quantizer.settle is not None:
    quantizer, state = quantizer.settle(x, state)
    if quantizer is compose.keep():
      return x
  elif state is not None and gates.gates(state.learned):
    raise ValueError(
      "a gate inside another quantizer cannot be stored; put it outside, as in "
      "gated(lambda bits: icquant(rtn(bits)))"
    )
  return store.compact(_deployed(quantizer)(x, key, state))


def weighted(x: Any, sensitivity: Array) -> qtensor.QTensor:
  """The trivial tensor of `x` whose elements count as given.

  Elements that are exactly 0 do not count.

  Raises:
    ValueError: the shapes differ, or a value is negative, NaN or Inf.

  References:
    SqueezeLLM, arXiv 2306.07629: so its code treats zeros.
  """
  if sensitivity.shape != x.shape:
    raise ValueError(f"{sensitivity.shape=} is not that of {x.shape=}")
  concrete = not isinstance(sensitivity, jax.core.Tracer)
  if concrete and not bool(jnp.all(jnp.isfinite(sensitivity))):
    raise ValueError("the sensitivity holds NaN or Inf")
  if concrete and bool(jnp.any(sensitivity < 0)):
    raise ValueError("the sensitivity is negative somewhere")
  q = qtensor.lift(x)
  weight = jnp.where(q.codes == 0, 0, sensitivity)
  grid = dataclasses.replace(q.grid, weight=weight)
  return dataclasses.replace(q, grid=grid)


def check(x: Any) -> None:
  """Refuses what no quantizer can take, as far as `x` is concrete."""
  shape = qtensor.lift(x).shape
  if 0 in shape:
    raise ValueError(f"cannot quantize an empty tensor, got {shape=}")
  if qtensor.is_quantized(x) or isinstance(x, jax.core.Tracer):
    return
  bad = int(_count_bad(x))
  if bad:
    raise ValueError(
      f"cannot quantize NaN or Inf: {bad} of {x.size} elements of {shape=}"
    )


@jax.jit
def _count_bad(x: Array) -> Array:
  return jnp.sum(~jnp.isfinite(x))


@functools.lru_cache(maxsize=512)
def _deployed(quantizer: Quantizer) -> Callable[..., Any]:
  stages = compose.series(quantizer, store.pack())

  @jax.jit
  def run(x, key, state=None):
    if state is not None:
      state = compose.gather([state, State()])
    else:
      state = stages.init(x)
    return qtensor.lower(stages.apply(x, state, key)[0])

  return run


def _series(*quantizers: Quantizer) -> Quantizer:
  stages = [q for q in quantizers if q is not compose.keep()]
  return compose.series(*stages) if stages else compose.keep()


def _by_path(quantizer: Any, state: State) -> dict[str, State]:
  if not isinstance(quantizer, Plan):
    return {"": state}
  return {
    path: State(learned, state.stats[path])
    for path, learned in state.learned.items()
  }


def _plan(
  assign: Callable[[PyTree], dict[str, Quantizer]],
  unused: Callable[[PyTree], list[str]],
) -> Plan:
  def init(tree):
    states = {}
    for (path, quantizer), leaf in zip(
      assign(tree).items(), _values(tree), strict=True
    ):
      with naming(path):
        states[path] = quantizer.init(leaf)
    return State(
      {path: s.learned for path, s in states.items()},
      {path: s.stats for path, s in states.items()},
    )

  def apply(tree, state, key=None):
    assigned = assign(tree)
    out, stats = [], {}
    for (path, quantizer), leaf, leaf_key in zip(
      assigned.items(), _values(tree), _keys(key, len(assigned)), strict=True
    ):
      with naming(path):
        part = State(state.learned[path], state.stats[path])
        q, stats[path] = quantizer.apply(leaf, part, leaf_key)
      out.append(qtensor.lower(q))
    return jax.tree.unflatten(_structure(tree), out), stats

  return Plan(init, apply, assign, unused)


def leaves(tree: PyTree) -> dict[str, Any]:
  """The leaves of a tree by path; a quantized tensor is one leaf.

  Example:
    >>> list(leaves({"a": {"kernel": 1, "bias": 2}, "b": [3]}))
    ['a/bias', 'a/kernel', 'b/0']
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(
    tree, is_leaf=qtensor.is_quantized
  )
  return {_name(path): leaf for path, leaf in flat}


def _values(tree: PyTree) -> list[Any]:
  return jax.tree.leaves(tree, is_leaf=qtensor.is_quantized)


def _structure(tree: PyTree) -> Any:
  return jax.tree.structure(tree, is_leaf=qtensor.is_quantized)


def _name(path: tuple[Any, ...]) -> str:
  # The box that an nnx variable or a linen `Partitioned` puts around an array
  # is not part of its name.
  boxes = (
    jax.tree_util.GetAttrKey("value"),
    jax.tree_util.GetAttrKey("raw_value"),
  )
  if path and path[-1] in boxes:
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _keys(key: Array | None, count: int) -> Sequence[Array | None]:
  return [None] * count if key is None else list(jax.random.split(key, count))


def _compiled(pattern: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern, re.IGNORECASE)
  except re.error as error:
    raise ValueError(f"{pattern!r} is not a pattern: {error}") from error


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Puts a leaf's path in front of the message of an error about it."""
  try:
    yield
  except (TypeError, ValueError) as error:
    if not path:
      raise
    kind = TypeError if isinstance(error, TypeError) else ValueError
    raise kind(f"{path}: {error}") from error
