"""CGMQ (arXiv 2409.20138): mixed precision under a bound on its cost.

Each tensor has a gate, whose value says its bits. While the network costs more
than it may, gates are pushed down, those of what matters least the fastest;
while it costs less, they may rise. No weight trades cost against loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from quantlab.core import base, gates, numerics, parameterization, qtensor
from quantlab.transforms import compose, gated, learn, plan, rounding

Array = jax.Array


@base.interned
def cgmq(
  *,
  signed: bool = True,
  widths: tuple[int, ...] = gates.WIDTHS,
  each: bool = False,
  batch: bool = False,
) -> base.Quantizer:
  """Rounds a tensor to a learned range and a number of bits that a gate says.

  Args:
    signed: the range is `[-bound, bound]`, with `2**bits - 1` levels; else
      `[0, bound]`, with `2**bits`, for what is never negative.
    widths: bits to choose from. 32 rounds nothing, it clips to the range.
    each: a gate for each element; see `gated`.
    batch: the leading axis is one of examples, as of activations.

  Returns:
    A quantizer whose `State.learned` is a `Gate` and the bound, which all
    widths share.

  Example:
    >>> import quantlab as ql
    >>> w = jnp.array([[-1.4], [-0.62], [-0.1], [0.31], [0.88], [2.0]])
    >>> state = cgmq().init(w)
    >>> gate, rest = state.learned
    >>> bool((ql.quantize(cgmq(), w, state=state) == w).all())
    True
    >>> state = state._replace(learned=(gate.at(4), rest))
    >>> (
    ...   ql.quantize(cgmq(), w, state=state).codes.unpack() - 0
    ... ).ravel().tolist()
    [-5, -2, 0, 1, 3, 7]

  References:
    arXiv 2409.20138; the quantizer is that of Bayesian Bits, arXiv 2005.07093,
    with its gates on up to a width. Reconstruction: pruning is left out.
  """

  def inner(bits):
    return plan.chain(_range(bits, signed), rounding.nearest(margin=0.5))

  return gated.gated(
    inner,
    widths=widths,
    full=_clipped(signed),
    shared=True,
    each=each,
    batch=batch,
  )


def _range(bits: int, signed: bool) -> base.Quantizer:
  spec = base.IntSpec(bits, signed=signed, symmetric=True)
  return learn.learned(parameterization.bound, spec, numerics.per_tensor)


def _clipped(signed: bool) -> base.Quantizer:
  """Clips to the range: what 32 bits are, which float32 cannot count."""
  grid = _range(16, signed)

  def apply(q, state, key=None):
    del key
    x, _ = qtensor.values(q)
    end = state.learned.values["bound"].astype(x.dtype)
    end = jnp.broadcast_to(end, x.shape)
    return qtensor.lift(jnp.clip(x, -end if signed else 0 * end, end)), ()

  return compose.lifted(base.Quantizer(grid.init, apply))


Direction = Callable[[Array, Array, Array], Array]
"""`direction(slope, size, over)`: how fast a gate is to fall.

`slope` and `size` are the mean magnitudes of the loss's gradient and of the
tensor; `over` is whether the network costs more than it may. Then all has to
be above some constant, else at most 0: so a bound that can be met is met.
"""

MOST, SLOWEST = 100.0, 1e-2


def _falling(importance: Array) -> Array:
  return jnp.clip(1 / (importance + 1e-8), SLOWEST, MOST)


def dir_1(slope: Array, size: Array, over: Array) -> Array:
  """By the gradient: `1 / slope` down, `slope` up."""
  del size
  return jnp.where(over, _falling(slope), -slope)


def dir_2(slope: Array, size: Array, over: Array) -> Array:
  """By gradient and magnitude: `1 / (slope + size)` down, their sum up."""
  return jnp.where(over, _falling(slope + size), -(slope + size))


def dir_3(slope: Array, size: Array, over: Array) -> Array:
  """All alike down, by gradient and magnitude up. Ours."""
  return jnp.where(over, 1.0, -(slope + size))


DIRECTIONS: dict[str, Direction] = {
  "dir_1": dir_1,
  "dir_2": dir_2,
  "dir_3": dir_3,
}
"""By name. Reconstruction: all three formulas, and both ends of a fall."""


class Guided(NamedTuple):
  """The state of `guided`.

  Who trains sets the first two, by `optax.tree.set(state, over=..., pace=...)`.

  Attributes:
    over: bool, whether the network costs more than it may.
    pace: times the direction is how fast a gate falls.
    skipped: int32, updates so far in which some gate stayed where it was, since
      a gradient was not finite.
  """

  over: Array
  pace: Array
  skipped: Array


def guided(
  direction: Direction | str = "dir_2", rate: float = 1e-2
) -> optax.GradientTransformation:
  """An optimizer of gates: each falls or rises as its direction says.

  Args:
    direction: one of `DIRECTIONS`, or its name.
    rate: the first pace.

  Raises:
    ValueError: there is no such direction, or the rate is not above 0.

  Example:
    >>> import quantlab as ql
    >>> gate = ql.Gate.open((1, 1), (2, 4, 8))
    >>> optimizer = guided("dir_3", rate=0.25)
    >>> state = optimizer.init(gate)
    >>> for _ in range(4):
    ...   move, state = optimizer.update(gate, state, gate)
    ...   gate = optax.apply_updates(gate, move)
    >>> gate.value.item(), gate.bits.item()
    (2.5, 8)

  References:
    arXiv 2409.20138. Reconstruction: a gate stays between the middle of the
    first step and half a step above the last.
  """
  if isinstance(direction, str):
    if direction not in DIRECTIONS:
      raise ValueError(f"{direction=} is none of {', '.join(DIRECTIONS)}")
    direction = DIRECTIONS[direction]
  if not rate > 0:
    raise ValueError(f"{rate=} has to be above 0")

  def init(params):
    del params
    return Guided(jnp.ones((), bool), jnp.array(rate), jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    bad = [jnp.zeros((), bool)]

    def one(seen, gate):
      finite = jnp.isfinite(seen.slope) & jnp.isfinite(seen.size)
      bad.append(~jnp.all(finite))
      fall = state.pace * direction(seen.slope, seen.size, state.over)
      top = len(gate.widths) + gates.LEAST
      after = jnp.clip(gate.value - fall, gates.LEAST, top)
      move = jnp.where(finite, after - gate.value, 0)
      zero = jnp.zeros_like(move)
      return gates.Gate(move, zero, zero, gate.widths)

    moves = jax.tree.map(one, updates, params, is_leaf=gates.is_gate)
    skipped = state.skipped + jnp.any(jnp.stack(bad))
    return moves, state._replace(skipped=skipped)

  return optax.GradientTransformation(init, update)
