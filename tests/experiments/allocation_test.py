import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.apply import cost
from quantlab.experiments import allocation

METHODS = (allocation.greedy, allocation.programme)


def _tables(seed, layers, choices=(2, 4, 8)):
  """Losses that fall with the bits, and costs that grow with them."""
  rng = np.random.default_rng(seed)
  losses, costs = {}, {}
  for i in range(layers):
    fall = (
      np.sort(rng.exponential(size=len(choices)))[::-1] * 10 ** rng.normal()
    )
    macs = int(rng.integers(1, 1_000_000))
    losses[f"l{i}"] = dict(zip(choices, fall.tolist(), strict=True))
    costs[f"l{i}"] = {bits: macs * bits * bits for bits in choices}
  return losses, costs


def _budget(costs, part):
  least = allocation.floor(costs)
  most = sum(max(table.values()) for table in costs.values())
  return least + int(part * (most - least))


@pytest.mark.parametrize("seed", range(8))
def test_the_programme_is_the_best_of_all_assignments(seed):
  losses, costs = _tables(seed, 5)
  budget = _budget(costs, (seed + 1) / 10)
  every = [
    dict(zip(costs, choices, strict=True))
    for choices in itertools.product((2, 4, 8), repeat=5)
  ]
  best = min(
    allocation.total(losses, chosen)
    for chosen in every
    if allocation.total(costs, chosen) <= budget
  )
  found = allocation.programme(losses, costs, budget)
  assert allocation.total(losses, found) == pytest.approx(best, rel=1e-9)


def test_no_method_beats_the_programme_and_all_keep_the_budget():
  means = []
  for seed in range(10):
    losses, costs = _tables(seed, 12)
    budget = _budget(costs, 0.3)
    found = [
      allocation.uniform(costs, budget),
      *(method(losses, costs, budget) for method in METHODS),
    ]
    for chosen in found:
      assert list(chosen) == list(costs)
      assert allocation.total(costs, chosen) <= budget
    worst, between, best = (allocation.total(losses, c) for c in found)
    assert best <= min(worst, between) * (1 + 1e-9)
    means.append((worst, between, best))
  uniform, greedy, programme = np.mean(means, axis=0)
  assert programme < greedy < uniform


def test_the_programme_meets_budgets_to_the_last_unit():
  # So large that the solver's tolerance is many units wide.
  costs = {"a": {2: 10**12, 4: 2 * 10**12}, "b": {2: 3, 4: 7, 8: 11}}
  losses = {"a": {2: 1.0, 4: 0.0}, "b": {2: 0.2, 4: 0.1, 8: 0.0}}
  for left, b in ((3, 2), (7, 4), (10, 4), (11, 8)):
    chosen = allocation.programme(losses, costs, 2 * 10**12 + left)
    assert chosen == {"a": 4, "b": b}
  assert allocation.programme(losses, costs, 2 * 10**12 + 2)["a"] == 2


@pytest.mark.parametrize("method", METHODS)
def test_choices_that_cost_more_and_lose_more_are_not_taken(method):
  costs = {"a": {(4, 8): 32, (8, 4): 32, (8, 8): 64}}
  losses = {"a": {(4, 8): 0.3, (8, 4): 0.2, (8, 8): 0.5}}
  assert method(losses, costs, 100) == {"a": (8, 4)}
  assert method(losses, costs, 40) == {"a": (8, 4)}


@pytest.mark.parametrize("method", METHODS)
def test_one_choice_is_taken(method):
  assert method({"a": {8: 1.0}}, {"a": {8: 5}}, 5) == {"a": 8}


def test_budgets_that_no_choice_meets():
  losses, costs = _tables(0, 2)
  least = allocation.floor(costs)
  text = rf"budget={least - 1} .*{least}.*'l0': 2, 'l1': 2"
  for method in METHODS:
    assert method(losses, costs, least) == {"l0": 2, "l1": 2}
    with pytest.raises(ValueError, match=text):
      method(losses, costs, least - 1)
  with pytest.raises(ValueError, match=text):
    allocation.uniform(costs, least - 1)
  apart = {"a": {2: 1, 4: 9}, "b": {4: 2, 8: 3}}
  assert allocation.uniform(apart, 12) == {"a": 4, "b": 4}
  with pytest.raises(ValueError, match=r"budget=10: they cost \{4: 11\}"):
    allocation.uniform(apart, 10)


def test_bad_tables():
  losses, costs = _tables(0, 2)
  losses["l1"][4] = float("nan")
  for method in METHODS:
    with pytest.raises(ValueError, match="l1: there is no finite loss at 4"):
      method(losses, costs, 10**12)
    with pytest.raises(ValueError, match="l0: there is no finite loss at 2"):
      method({}, costs, 10**12)
  with pytest.raises(ValueError, match="a: has no choice"):
    allocation.floor({"a": {}})
  with pytest.raises(ValueError, match="a: costs are integers"):
    allocation.floor({"a": {2: 1.5}})


def test_measure_moves_one_layer_at_a_time():
  asked, shown = [], []

  def loss(chosen):
    asked.append(chosen)
    return 3.0 - sum(chosen.values())

  def track(items, text):
    shown.append((len(items), text))
    return items

  found = allocation.measure(loss, ["a", "b"], [2, 4], track=track)
  assert asked == [{}, {"a": 2}, {"a": 4}, {"b": 2}, {"b": 4}]
  assert found == {layer: {2: -2.0, 4: -4.0} for layer in "ab"}
  assert shown == [(4, "layers alone")]


def test_stored_bits_are_those_of_the_packed_tree():
  params = {"a": {"kernel": jnp.ones((16, 4)), "bias": jnp.ones(4)}}
  packed = {
    "a": {**params["a"], "kernel": ql.quantize(ql.rtn(3), jnp.eye(16, 4))}
  }
  shapes = jax.eval_shape(lambda: params)
  found = allocation.stored_bits(shapes, {"a/kernel": ql.rtn(3)})
  assert found == ql.nbits(packed)
  kept = allocation.stored_bits(shapes, {"a/kernel": ql.keep()})
  assert kept == allocation.stored_bits(params, {}) == 68 * 32
  with pytest.raises(ValueError, match=r"\['kernel'\] are not among .*a/bias"):
    allocation.stored_bits(shapes, {"kernel": ql.rtn(3)})
  with pytest.raises(ValueError, match=r"a/kernel: .*depends on its values"):
    allocation.stored_bits(shapes, {"a/kernel": ql.icquant(ql.rtn(2))})


def test_bit_operations_as_costs_of_layers():
  model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(4)])
  x = jax.ShapeDtypeStruct((1, 6), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  layers = cost.layers(model, shapes, x)
  inputs = cost.first(layers)

  def bops(bits):
    acts = {path: a for path, (_, a) in bits.items() if path not in inputs}
    weights = {path: w for path, (w, _) in bits.items()}
    found = {path: layers[path] for path in bits}
    return cost.bops(found, weights, acts)

  choices = [(2, 2), (4, 4), (8, 8)]
  costs = {path: {c: bops({path: c}) for c in choices} for path in layers}
  assert allocation.floor(costs) == 48 * 2 * 8 + 32 * 2 * 2
  chosen = allocation.uniform(costs, 48 * 4 * 8 + 32 * 4 * 4)
  assert chosen == dict.fromkeys(layers, (4, 4))
  assert allocation.total(costs, chosen) == bops(chosen)
