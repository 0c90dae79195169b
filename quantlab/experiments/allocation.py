"""Which layer gets which bits, where the whole network has a budget.

Two tables, `{layer: {choice: number}}`, say it all: the loss of each layer at
each of its choices while the others stay as they are, and what the choice
costs, an integer. Losses of layers are taken to add up. A choice is any
hashable value, such as a number of bits or a pair `(b_w, b_a)`.

  uniform     the same choice for all layers
  greedy      one layer at a time, by loss for cost
  programme   the least loss there is, by integer programming

All are baselines: they see each layer alone, and train nothing.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
import functools
import math
from typing import Any, TypeVar

import jax
import numpy as np

from quantlab.experiments import progress, sizes
from quantlab.transforms import plan

Choice = TypeVar("Choice", bound=Hashable)
Losses = Mapping[str, Mapping[Choice, float]]
Costs = Mapping[str, Mapping[Choice, int]]


def measure(
  loss: Callable[[Mapping[str, Choice]], float],
  layers: Iterable[str],
  choices: Iterable[Choice],
  *,
  track: progress.Track = lambda items, text: items,
) -> dict[str, dict[Choice, float]]:
  """The loss increase of each layer alone at each choice.

  Args:
    loss: `loss({layer: choice})` of the network with these layers quantized and
      the others not; `loss({})` is that of the network as it is.
    layers: names.
    choices: for every layer.
    track: shows progress.

  Example:
    >>> error = {2: 0.5, 4: 0.125}
    >>> measure(lambda at: 1 + sum(error[b] for b in at.values()), "ab", [2, 4])
    {'a': {2: 0.5, 4: 0.125}, 'b': {2: 0.5, 4: 0.125}}
  """
  names, choices = list(layers), list(choices)
  start = float(loss({}))
  found: dict[str, dict[Choice, float]] = {name: {} for name in names}
  pairs = [(name, choice) for name in names for choice in choices]
  for name, choice in track(pairs, "layers alone"):
    found[name][choice] = float(loss({name: choice})) - start
  return found


def stored_bits(leaves: Any, quantizers: Mapping[str, Any]) -> int:
  """Stored bits of a tree, from shapes alone.

  Args:
    leaves: a pytree of arrays or `jax.ShapeDtypeStruct`.
    quantizers: by path of the leaf; leaves that are not named stay as they are.

  Raises:
    ValueError: a path is no leaf's, a leaf does not fit its quantizer, or the
      size depends on the data, as that of a gap code does.

  Example:
    >>> import jax.numpy as jnp
    >>> import quantlab as ql
    >>> params = {"kernel": jax.ShapeDtypeStruct((64, 8), jnp.float32)}
    >>> stored_bits(params, {"kernel": ql.rtn(4)})  # 4 a weight, 64 a column
    2560
  """
  known = plan.leaves(leaves)
  unknown = [path for path in quantizers if path not in known]
  if unknown:
    raise ValueError(f"{unknown} are not among the leaves {[*known]}")
  total = 0
  for path, leaf in known.items():
    leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if path in quantizers:
      with plan.naming(path):
        make = functools.partial(plan.quantize_leaf, quantizers[path])
        leaf = jax.eval_shape(make, leaf)
    bits, sure = sizes.expected(leaf)
    if sure != sizes.EXACT:
      raise ValueError(f"{path}: how many bits it takes depends on its values")
    total += int(bits)
  return total


def floor(costs: Costs[Choice]) -> int:
  """The least total cost.

  Raises:
    ValueError: a layer has no choice, or a cost is no integer.
  """
  return total(costs, _cheapest(costs))


def total(
  table: Mapping[str, Mapping[Choice, Any]], chosen: Mapping[str, Choice]
) -> Any:
  """The sum of a table's entries at the chosen options."""
  return sum(table[layer][choice] for layer, choice in chosen.items())


def uniform(costs: Costs[Choice], budget: int) -> dict[str, Choice]:
  """The most expensive choice that all layers can have at once.

  Raises:
    ValueError: none is within the budget.

  Example:
    >>> costs = {"a": {2: 20, 4: 40}, "b": {2: 10, 4: 20}}
    >>> uniform(costs, 50)
    {'a': 2, 'b': 2}
  """
  _check_budget(costs, budget)
  options = next(iter(costs.values()))
  of_all = {
    choice: total(costs, dict.fromkeys(costs, choice))
    for choice in options
    if all(choice in table for table in costs.values())
  }
  within = [choice for choice, cost in of_all.items() if cost <= budget]
  if not within:
    raise ValueError(
      f"no choice of all layers is within {budget=}: they cost {of_all}"
    )
  return dict.fromkeys(costs, max(within, key=of_all.__getitem__))


def greedy(
  losses: Losses[Choice], costs: Costs[Choice], budget: int
) -> dict[str, Choice]:
  """Steps down from the most expensive choices, and up with what is left.

  While the budget does not hold, the step to a cheaper choice that adds the
  least loss for the cost it saves is taken; then, while one fits, the step that
  takes away the most loss.

  Raises:
    ValueError: the budget is below the floor, or a choice has no finite loss.

  Example:
    >>> costs = {"a": {2: 20, 4: 40}, "b": {2: 10, 4: 20}}
    >>> losses = {"a": {2: 5.0, 4: 1.0}, "b": {2: 2.0, 4: 1.0}}
    >>> greedy(losses, costs, 50)
    {'a': 4, 'b': 2}
  """
  _check_losses(losses, costs)
  _check_budget(costs, budget)
  chosen = {
    layer: max(table, key=lambda c: (table[c], -losses[layer][c]))
    for layer, table in costs.items()
  }

  def steps():
    """Layer, choice, and what the step adds to loss and cost."""
    for layer, now in chosen.items():
      for choice, cost in costs[layer].items():
        worse = losses[layer][choice] - losses[layer][now]
        yield layer, choice, worse, cost - costs[layer][now]

  while total(costs, chosen) > budget:
    down = [step for step in steps() if step[3] < 0]
    layer, choice, *_ = min(down, key=lambda step: step[2] / -step[3])
    chosen[layer] = choice
  while True:
    left = budget - total(costs, chosen)
    up = [step for step in steps() if step[2] < 0 and step[3] <= left]
    if not up:
      return chosen
    layer, choice, *_ = min(up, key=lambda step: step[2])
    chosen[layer] = choice


def programme(
  losses: Losses[Choice], costs: Costs[Choice], budget: int
) -> dict[str, Choice]:
  """The choices of the least total loss within the budget.

  An integer programme, solved to the end: `min sum losses[l][c] x[l, c]` where
  one `x[l, c]` of each layer is 1, the others are 0, and `sum costs[l][c]
  x[l, c] <= budget`. The solver computes in floating point, so the cost is
  checked in integers; should an answer exceed the budget, it is forbidden and
  the programme is solved again.

  Raises:
    ValueError: the budget is below the floor, or a choice has no finite loss.

  Example:
    >>> costs = {"a": {2: 20, 4: 40}, "b": {2: 10, 4: 20}}
    >>> losses = {"a": {2: 5.0, 4: 1.0}, "b": {2: 3.0, 4: 1.0}}
    >>> programme(losses, costs, 50)
    {'a': 4, 'b': 2}

  References:
    HAWQ-V3, arXiv 2011.10680, chooses bits by such a programme.
  """
  from scipy import optimize

  _check_losses(losses, costs)
  least = _check_budget(costs, budget)
  cheapest = {layer: min(table.values()) for layer, table in costs.items()}
  pairs = [(layer, choice) for layer in costs for choice in costs[layer]]
  extra = [costs[layer][choice] - cheapest[layer] for layer, choice in pairs]
  # What the solver takes for equal is absolute: its numbers are of order 1.
  unit = math.gcd(*extra) or 1
  left = (budget - least) // unit
  scale = max(left, 1)
  weights = np.array([cost // unit / scale for cost in extra])
  values = np.array([losses[layer][choice] for layer, choice in pairs])
  values = _of_order_one(values, [layer for layer, _ in pairs])
  one_each = np.array([[name == layer for name, _ in pairs] for layer in costs])
  constraints = [
    optimize.LinearConstraint(one_each.astype(float), 1, 1),
    optimize.LinearConstraint(weights[None], -np.inf, (left + 0.5) / scale),
  ]
  while True:
    result = optimize.milp(
      values,
      integrality=np.ones(len(pairs)),
      bounds=optimize.Bounds(0, 1),
      constraints=constraints,
      options={"mip_rel_gap": 0},
    )
    if not result.success:
      raise RuntimeError(f"the integer programme: {result.message}")
    taken = result.x > 0.5
    chosen = dict(pair for pair, one in zip(pairs, taken, strict=True) if one)
    if total(costs, chosen) <= budget:
      return chosen
    constraints.append(
      optimize.LinearConstraint(
        taken[None].astype(float), -np.inf, len(costs) - 1
      )
    )


def _of_order_one(values: np.ndarray, names: list[str]) -> np.ndarray:
  """Losses above the least of each layer, whose largest is 1000."""
  least: dict[str, float] = {}
  for name, value in zip(names, values, strict=True):
    least[name] = min(value, least.get(name, math.inf))
  above = values - [least[name] for name in names]
  return 1000 * above / (above.max() or 1)


def _cheapest(costs: Costs[Choice]) -> dict[str, Choice]:
  for layer, table in costs.items():
    if not table:
      raise ValueError(f"{layer}: has no choice")
    if not all(isinstance(cost, int) for cost in table.values()):
      raise ValueError(f"{layer}: costs are integers, got {dict(table)}")
  return {
    layer: min(table, key=table.__getitem__) for layer, table in costs.items()
  }


def _check_budget(costs: Costs[Choice], budget: int) -> int:
  """The floor; refuses a budget below it."""
  cheapest = _cheapest(costs)
  least = total(costs, cheapest)
  if budget < least:
    raise ValueError(
      f"{budget=} is below the least cost, {least}, of the cheapest choices "
      f"{cheapest}"
    )
  return least


def _check_losses(losses: Losses[Choice], costs: Costs[Choice]) -> None:
  for layer, table in costs.items():
    for choice in table:
      known = losses.get(layer, {})
      if not math.isfinite(known.get(choice, math.nan)):
        raise ValueError(
          f"{layer}: there is no finite loss at {choice!r}, got {dict(known)}"
        )
