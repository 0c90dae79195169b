"""Learned grids: uniform grids whose ranges an optimizer moves.

One grid can be said in several pairs of numbers, and which decides how it
trains. A `Parameterization` is such a pair. All are differentiated through the
same forward pass, and all gradients are autodiff's.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from quantlab.core import base, grids, numerics

Array = jax.Array
Range = base.Range
Values = dict[str, Array]

LEAST_RANGE = 1e-5
"""The narrowest range of `min_max` after a projection."""

LEAST_STEP = 1e-8
"""The smallest step after a projection."""


class Parameterization(NamedTuple):
  """Numbers that say a uniform grid, by name.

  `extremes()` gives the smallest and the largest element of each cell of the
  current tensor, without gradient.

  Attributes:
    name: of the pair.
    start: `start(range, extremes, spec)`: what says a range.
    grid: `grid(values, extremes, spec) -> (step, zero point)`, differentiable.
    project: `project(values, spec)`: the nearest valid values.
  """

  name: str
  start: Callable[[Range, Callable[[], Range], base.IntSpec], Values]
  grid: Callable[..., tuple[Array, Array]]
  project: Callable[[Values, base.IntSpec], Values]


@base.pytree
class Learned:
  """What is learned of a grid.

  Attributes:
    values: arrays of the grid's shape, by name.
    kind: name of the parameterization, in `PARAMETERIZATIONS`.
    spec: the codes.
  """

  values: Values
  kind: str = base.static()
  spec: base.IntSpec = base.static()

  def grid(self, extremes: Callable[[], Range]) -> grids.Affine:
    """The grid that the numbers say."""
    scale, zero = self._kind.grid(self.values, extremes, self.spec)
    return grids.Affine(scale, zero, self.spec)

  def projected(self) -> "Learned":
    """The nearest valid numbers."""
    values = self._kind.project(self.values, self.spec)
    return dataclasses.replace(self, values=values)

  @property
  def _kind(self) -> Parameterization:
    return PARAMETERIZATIONS[self.kind]


def _affine(range_: Range, spec: base.IntSpec) -> tuple[Array, Array]:
  scale, zero = numerics.affine_from_range(range_, spec, range_.lo.dtype)
  return scale, zero.astype(scale.dtype)


def _zero(zero: Array, spec: base.IntSpec) -> Array:
  return numerics.ste_round(zero) if spec.exact_zero else zero


def _step(values: Values) -> Values:
  return {**values, "scale": jnp.maximum(values["scale"], LEAST_STEP)}


def _between(lo: Array, hi: Array, spec: base.IntSpec) -> tuple[Array, Array]:
  scale = jnp.maximum((hi - lo) / (spec.hi - spec.lo), LEAST_STEP)
  return scale, _zero(spec.lo - lo / scale, spec)


step = Parameterization(
  "step",
  lambda range_, extremes, spec: {"scale": _affine(range_, spec)[0]},
  lambda values, extremes, spec: (
    values["scale"],
    jnp.zeros((1,) * values["scale"].ndim, jnp.int8),
  ),
  lambda values, spec: _step(values),
)
"""`scale` of a symmetric grid, as in LSQ."""


def _start_offset(range_, extremes, spec):
  del extremes
  scale, zero = _affine(range_, spec)
  return {"scale": scale, "offset": -zero * scale}


scale_offset = Parameterization(
  "scale_offset",
  _start_offset,
  lambda values, extremes, spec: (
    values["scale"],
    _zero(-values["offset"] / values["scale"], spec),
  ),
  lambda values, spec: _step(values),
)
"""`scale`, and `offset`: the value of the code 0, as in LSQ+."""


scale_zero = Parameterization(
  "scale_zero",
  lambda range_, extremes, spec: dict(
    zip(("scale", "zero"), _affine(range_, spec), strict=True)
  ),
  lambda values, extremes, spec: (values["scale"], _zero(values["zero"], spec)),
  lambda values, spec: {
    **_step(values),
    "zero": jnp.clip(values["zero"], spec.lo, spec.hi),
  },
)
"""`scale`, and `zero`: the code of the value 0."""


def _project_ends(values, spec):
  del spec
  lo = jnp.minimum(values["lo"], 0)
  return {
    "lo": lo,
    "hi": jnp.maximum(values["hi"], jnp.maximum(0, lo + LEAST_RANGE)),
  }


min_max = Parameterization(
  "min_max",
  lambda range_, extremes, spec: range_._asdict(),
  lambda values, extremes, spec: _between(values["lo"], values["hi"], spec),
  _project_ends,
)
"""`lo` and `hi`: the ends of the range."""


def _start_factors(range_, extremes, spec):
  del spec
  beta, gamma = (
    jnp.where(end == 0, 1, part / jnp.where(end == 0, 1, end))
    for part, end in zip(range_, extremes(), strict=True)
  )
  return {"beta": beta, "gamma": gamma}


def _factors(values, extremes, spec):
  lo, hi = extremes()
  return _between(values["beta"] * lo, values["gamma"] * hi, spec)


beta_gamma = Parameterization(
  "beta_gamma",
  _start_factors,
  _factors,
  lambda values, spec: jax.tree.map(lambda a: jnp.maximum(a, 0), values),
)
"""`beta` and `gamma`: factors of the current smallest and largest element."""


def _start_bound(range_, extremes, spec):
  del extremes
  low = -range_.lo if spec.signed else range_.hi
  return {"bound": jnp.maximum(low, range_.hi)}


bound = Parameterization(
  "bound",
  _start_bound,
  lambda values, extremes, spec: (
    values["bound"] / (spec.hi + spec.signed / 2),
    jnp.zeros((1,) * values["bound"].ndim, jnp.int8),
  ),
  lambda values, spec: {"bound": jnp.maximum(values["bound"], LEAST_RANGE)},
)
"""`bound`: the end of a range `[-bound, bound]`, or `[0, bound]` without sign.

It is a border between codes where there is a sign, so that the levels of 2, 4,
8 and 16 bits are nested, as in Bayesian Bits (arXiv 2005.07093).
"""


_LOGIT = 4.0  # where a factor of 1 starts


def _start_logits(range_, extremes, spec):
  factors = _start_factors(range_, extremes, spec)
  logits = jax.tree.map(jax.scipy.special.logit, factors)
  return jax.tree.map(lambda a: jnp.clip(a, -_LOGIT, _LOGIT), logits)


beta_gamma_sigmoid = Parameterization(
  "beta_gamma_sigmoid",
  _start_logits,
  lambda values, extremes, spec: _factors(
    jax.tree.map(jax.nn.sigmoid, values), extremes, spec
  ),
  lambda values, spec: values,
)
"""The same factors, between 0 and 1, said by their logits."""


PARAMETERIZATIONS = {
  kind.name: kind
  for kind in (
    step,
    scale_offset,
    scale_zero,
    min_max,
    beta_gamma,
    beta_gamma_sigmoid,
    bound,
  )
}
