"""A training whose model may not cost more than a budget.

Costs are counted in exact integers, outside the compiled step. The state of the
last step that kept the budget is what a training gives; where there is none,
all gates are pushed down together until it holds.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import quantlab as ql
from quantlab.apply import cost as counting
from quantlab.core import gates
from quantlab.experiments import allocation, progress, train
from quantlab.transforms import plan

Key = tuple[str, str]
"""Where a gate is: "weights" or "acts", and the path of the leaf or site."""

_OF = ("bops", "bits", "bytes")
_ALLOCATE = ("gates", "uniform", "greedy", "programme")


@dataclasses.dataclass(frozen=True)
class Budget:
  """The section `budget` of a variant.

  Attributes:
    most: what the model may cost; up to 1 it is a share of the cost at 32 bits.
    of: "bops", bit operations of one example; "bits", all that is stored of the
      params; "bytes", of the params and the largest input of a layer.
    allocate: "gates" as they are guided in the training; or widths chosen
      before it and kept, "uniform", "greedy" or "programme".
    direction: of gates, a name of `methods.cgmq.DIRECTIONS`.
    rate: times the direction is how fast a gate falls.
    every: steps from one comparison of cost and budget to the next.
    warmup: steps before gates move.
    input_bits: of the network's input.
  """

  most: float
  of: str = "bops"
  allocate: str = "gates"
  direction: str = "dir_2"
  rate: float = 1e-2
  every: int = 50
  warmup: int = 0
  input_bits: int = 8

  def __post_init__(self):
    for name, known in (("of", _OF), ("allocate", _ALLOCATE)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name}={getattr(self, name)!r} is none of {', '.join(known)}"
        )
    for name, least in (("every", 1), ("warmup", 0), ("input_bits", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"{name}={getattr(self, name)} is less than {least}")
    if not self.most > 0:
      raise ValueError(f"most={self.most} has to be above 0")
    self.optimizer()

  def optimizer(self) -> optax.GradientTransformation | None:
    """Of the gates; None where they stay."""
    if self.allocate == "gates":
      return ql.guided(self.direction, self.rate)
    return None


class Kept(NamedTuple):
  """The last training that kept the budget.

  Attributes:
    training: it; before there is one, any.
    found: bool, whether there is one.
  """

  training: train.Training
  found: Any


class Keeper:
  """Keeps the budget of a variant.

  Args:
    budget: the section.
    model: what is trained.
    plans: that place gated quantizers on its kernels and inputs of layers.
    training: before its first step.
    inputs: a batch.

  Raises:
    ValueError: nothing is gated; bit operations are counted, and something is
      quantized without a gate; or the budget is below the least cost.
  """

  def __init__(
    self,
    budget: Budget,
    model: nn.Module,
    plans: train.Plans,
    training: train.Training,
    inputs: Any,
  ):
    self.budget, self.model, self.plans = budget, model, plans
    self.layers = counting.layers(model, training.variables, inputs[:1])
    gated = _gates(training)
    if not gated:
      raise ValueError("a budget needs gates: quantizers by `gated` or `cgmq`")
    if budget.of == "bops":
      self._check_gated(training.variables, inputs, gated)
    whole = self._whole(training)
    self.most = int(budget.most * whole if budget.most <= 1 else budget.most)
    self.least = self.cost(_at(training, lambda _, gate: gate.widths[0]))
    if self.most < self.least:
      raise ValueError(
        f"a budget of {self.most} {budget.of} is below the least cost, "
        f"{self.least}, which is that of all gates at their fewest bits "
        f"({self.least / whole:.4%} of the cost at 32 bits)"
      )

  def _check_gated(
    self, variables: Any, inputs: Any, gated: Collection[Key]
  ) -> None:
    """Bits that no gate says are not known."""
    kernels = [layer.kernel for layer in self.layers.values()]
    for part, tree, places in (
      ("weights", variables["params"], kernels),
      (
        "acts",
        ql.sites(self.model, variables, inputs),
        [f"{path}/in" for path in self.layers],
      ),
    ):
      rules = getattr(self.plans, part)
      if rules is None:
        continue
      for path, quantizer in plan.as_plan(rules).assign(tree).items():
        known = path in places and (part, path) in gated
        if quantizer is not ql.keep() and not known:
          raise ValueError(
            "bit operations are counted where what is quantized has a gate and "
            f"is of a layer: {path} of {part} is not; there are {places}"
          )

  def _whole(self, training: train.Training) -> int:
    """The cost at 32 bits."""
    if self.budget.of == "bops":
      return counting.bops(self.layers, {}, {}, input_bits=32)
    params = ql.nbits(training.variables["params"])
    if self.budget.of == "bits":
      return params
    return params // 8 + max(
      4 * math.prod(layer.input) for layer in self.layers.values()
    )

  def cost(self, training: train.Training) -> int:
    """What the model costs now, exactly."""
    weights, acts = self.bits(training)
    if self.budget.of == "bops":
      return counting.bops(
        self.layers, weights, acts, input_bits=self.budget.input_bits
      )
    stored = ql.nbits(train.deploy(self.plans, training))
    if self.budget.of == "bits":
      return stored
    largest = max(
      int(np.broadcast_to(self._input_bits(path, acts), layer.input).sum())
      for path, layer in self.layers.items()
    )
    return -(-stored // 8) + -(-largest // 8)

  def _input_bits(self, path: str, acts: Mapping[str, Any]) -> Any:
    """Of a layer, whether there is a gate or not."""
    first = self.layers[path].first
    return acts.get(path, self.budget.input_bits if first else 32)

  def bits(
    self, training: train.Training
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bits of weights and of inputs, by layer, where there is a gate."""
    gated = _gates(training)
    weights, acts = {}, {}
    for path, layer in self.layers.items():
      if ("weights", layer.kernel) in gated:
        weights[path] = _numbers(gated["weights", layer.kernel])
      if ("acts", f"{path}/in") in gated:
        acts[path] = _numbers(gated["acts", f"{path}/in"])
    return weights, acts

  def begin(
    self,
    training: train.Training,
    loss: Callable[[train.Training], float],
    track: progress.Track,
  ) -> train.Training:
    """The training with its first case decided, or its widths allocated."""
    if self.budget.allocate == "gates":
      return self._guided(training, 0, self.cost(training))
    return self._allocated(training, loss, track)

  def decide(
    self, training: train.Training, kept: Kept, step: int
  ) -> tuple[train.Training, Kept, int]:
    """Compares cost and budget: the next case, what is kept, and the cost."""
    now = self.cost(training)
    if now <= self.most:
      kept = Kept(training, jnp.ones((), bool))
    if self.budget.allocate == "gates":
      training = self._guided(training, step, now)
    return training, kept, now

  def _guided(
    self, training: train.Training, step: int, now: int
  ) -> train.Training:
    pace = self.budget.rate if step >= self.budget.warmup else 0.0
    state = optax.tree_utils.tree_set(
      training.optimizer,
      over=jnp.array(now > self.most),
      pace=jnp.array(pace, jnp.float32),
    )
    return training._replace(optimizer=state)

  def result(self, training: train.Training, kept: Kept) -> train.Training:
    """What the training gives: it keeps the budget, always.

    Raises:
      ValueError: sizes depend on the weights, and those of the last step exceed
        the budget at the fewest bits.
    """
    if kept.found:
      return kept.training
    while (now := self.cost(training)) > self.most:
      if all((gate.place <= 1).all() for gate in _gates(training).values()):
        raise ValueError(
          f"a budget of {self.most} {self.budget.of} cannot be kept: with the "
          f"weights of step {int(training.step)} the fewest bits cost {now}"
        )
      training = _pushed(training)
    return training

  def _allocated(
    self,
    training: train.Training,
    loss: Callable[[train.Training], float],
    track: progress.Track,
  ) -> train.Training:
    """Widths from the losses of single layers, which are taken to add up."""
    choices = self._choices(training)
    gated = _gates(training)
    narrow = {key: gate.widths[0] for key, gate in gated.items()}
    wide = {key: gate.widths[-1] for key, gate in gated.items()}

    def placed(chosen, rest):
      bits = dict(rest)
      for path, pair in chosen.items():
        bits |= dict(zip(self._keys(path, gated), pair, strict=True))
      return _at(training, lambda key, gate: bits[key])

    base = self.cost(placed({}, narrow))
    costs = {
      path: {
        pair: self.cost(placed({path: pair}, narrow)) - base for pair in pairs
      }
      for path, pairs in choices.items()
    }
    room = self.most - base
    if self.budget.allocate == "uniform":
      chosen = _uniform(costs, room)
    else:
      losses = {
        path: allocation.measure(
          lambda chosen: loss(placed(chosen, wide)), [path], pairs, track=track
        )[path]
        for path, pairs in choices.items()
      }
      chosen = getattr(allocation, self.budget.allocate)(losses, costs, room)
    return placed(chosen, narrow)

  def _keys(self, path: str, gated: Collection[Key]) -> list[Key]:
    keys = (("weights", self.layers[path].kernel), ("acts", f"{path}/in"))
    return [key for key in keys if key in gated]

  def _choices(
    self, training: train.Training
  ) -> dict[str, list[tuple[int, ...]]]:
    """Bits of weights and input that each layer can have."""
    gated = _gates(training)
    found = {}
    for path in self.layers:
      pairs: list[tuple[int, ...]] = [()]
      for key in self._keys(path, gated):
        pairs = [(*p, bits) for p in pairs for bits in gated[key].widths]
      if pairs != [()]:
        found[path] = pairs
    return found

  def table(self, training: train.Training) -> list[dict[str, Any]]:
    """A row for each layer: its bits and its cost."""
    weights, acts = self.bits(training)
    packed = train.deploy(self.plans, training)
    stored = plan.leaves(packed)
    rows = []
    for path, layer in self.layers.items():
      inputs, bits = self._input_bits(path, acts), weights.get(path, 32)
      rows.append(
        {
          "layer": path,
          "weight_bits": float(np.mean(bits)),
          "input_bits": float(np.mean(inputs)),
          "macs": layer.macs,
          "bops": layer.bops(bits, inputs),
          "stored_bits": ql.nbits(stored[layer.kernel]),
        }
      )
    return rows


def _uniform(costs: Any, room: int) -> dict[str, tuple[int, ...]]:
  """The same bits everywhere, for weights and inputs alike."""
  even = {
    path: {pair[0]: cost for pair, cost in table.items() if len({*pair}) == 1}
    for path, table in costs.items()
  }
  chosen = allocation.uniform(even, room)
  lengths = {path: len(next(iter(table))) for path, table in costs.items()}
  return {path: (bits,) * lengths[path] for path, bits in chosen.items()}


def _gates(training: train.Training) -> dict[Key, ql.Gate]:
  """Every gate, by part and path."""
  return {
    (part, path): gate
    for part in ("weights", "acts")
    for path, learned in getattr(training, part).learned.items()
    for gate in ql.gates(learned)
  }


def _numbers(gate: ql.Gate) -> Any:
  """Bits as an integer, or as integers of elements."""
  bits = np.asarray(gate.bits).astype(np.int64)
  return int(bits.reshape(())) if bits.size == 1 else bits


def _at(
  training: train.Training, bits: Callable[[Key, ql.Gate], int]
) -> train.Training:
  """The training with its gates at these bits."""
  return _replaced(training, lambda key, gate: gate.at(bits(key, gate)))


def _pushed(training: train.Training) -> train.Training:
  """The training with all its gates a quarter of a step lower."""

  def down(key, gate):
    del key
    value = jnp.maximum(gate.value - 0.25, gates.LEAST)
    return dataclasses.replace(gate, value=value)

  return _replaced(training, down)


def _replaced(
  training: train.Training, function: Callable[[Key, ql.Gate], ql.Gate]
) -> train.Training:
  def one(part: str) -> ql.State:
    state = getattr(training, part)
    learned = {
      path: jax.tree.map(
        lambda x, key=(part, path): (
          function(key, x) if isinstance(x, ql.Gate) else x
        ),
        tree,
        is_leaf=lambda x: isinstance(x, ql.Gate),
      )
      for path, tree in state.learned.items()
    }
    return ql.State(learned, state.stats)

  return training._replace(weights=one("weights"), acts=one("acts"))
