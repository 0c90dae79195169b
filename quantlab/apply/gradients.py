"""Quantized gradients of activations, and the state of their quantizers.

A gradient exists in the backward pass alone, and so does what is seen of it.
`grad_tap` is the identity whose derivative quantizes what comes from above, and
hands the statistics that have seen it out as the "gradient" of its state. A
training step takes both, and overwrites the state with what came back:

  grads, seen = jax.grad(loss, argnums=(0, 1))(params, carried)
  carried = ql.overwritten(carried, seen)

Autodiff adds up the cotangents of a value that is used twice, so a state serves
one place of one call.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.apply import taps
from quantlab.core import base, qtensor
from quantlab.transforms import compose, plan

Array = jax.Array
PyTree = Any

COLLECTION = "grads"
"""The flax collection of the states; also the name of the stream of keys."""


class Carried(NamedTuple):
  """The state of a gradient's quantizer, in a form that has a cotangent.

  Attributes:
    state: the quantizer's, every array as float32.
    uses: float32 scalar; in what comes back as a gradient, in how many places
      the state was used.
  """

  state: base.State
  uses: Array


def grad_tap(
  quantizer: base.Quantizer,
  x: Array,
  carried: Carried | None = None,
  key: Array | None = None,
) -> Array:
  """The identity, whose derivative is quantized.

  Args:
    quantizer: of the cotangent.
    x: an activation.
    carried: from `carry`; not needed by a quantizer without a state.
    key: for random rounding, of which gradients need some: rounded to nearest,
      small ones all vanish.

  Returns:
    `x`. Differentiated, its cotangent is the quantized one, and that of
    `carried` is the state after it, to be taken by `overwritten`.

  Example:
    >>> import quantlab as ql
    >>> q = ql.chain(ql.tracked(ql.ema(), ql.INT4, ql.per_tensor), ql.nearest())
    >>> x, above = jnp.ones(3), jnp.array([1.0, -0.3, 2.0])
    >>> def loss(x, carried):
    ...   return jnp.sum(above * grad_tap(q, x, carried))
    >>> carried = carry(q, x)
    >>> grad, seen = jax.grad(loss, (0, 1))(x, carried)
    >>> [f"{g:.2f}" for g in grad]
    ['0.93', '-0.30', '2.00']
    >>> state = restored(q, x, overwritten(carried, seen)).stats[0]
    >>> state.count.item(), state.stats.hi.item()
    (1, 2.0)

  References:
    Fournarakis and Nagel, arXiv 2105.04246, quantize so the gradient that
    enters a layer from above. State as a gradient: flax's `fp8_ops`.
  """
  if carried is None:
    carried = carry(quantizer, x)

  @jax.custom_vjp
  def identity(x, carried, key):
    del carried, key
    return x

  def forward(x, carried, key):
    return x, (carried, key)

  def backward(kept, cotangent):
    carried, key = kept
    state = restored(quantizer, cotangent, carried)
    q, stats = quantizer.apply(cotangent, state, key)
    seen = Carried(_floats(state._replace(stats=stats)), jnp.ones(()))
    return qtensor.dequantize(q), seen, None

  identity.defvjp(forward, backward)
  return identity(x, carried, key)


def carry(quantizer: base.Quantizer, x: Any) -> Carried:
  """The first state of a gradient's quantizer.

  Args:
    quantizer: of the gradient. It learns nothing.
    x: an array of the gradient's shape, or the shape.

  Raises:
    ValueError: the quantizer learns something, which would need a gradient of
      its own.
  """
  state = quantizer.init(jnp.zeros(x.shape, x.dtype))
  if jax.tree.leaves(state.learned):
    raise ValueError(
      "a quantizer of gradients cannot learn: fit() or tracked()"
    )
  return Carried(_floats(state), jnp.zeros(()))


def restored(quantizer: base.Quantizer, x: Any, carried: Carried) -> base.State:
  """The quantizer's own state."""
  types = jax.eval_shape(quantizer.init, x)
  return jax.tree.map(
    lambda a, like: a.astype(like.dtype), carried.state, types
  )


def _floats(state: base.State) -> base.State:
  return jax.tree.map(lambda a: a.astype(jnp.float32), state)


def overwritten(carried: PyTree, seen: PyTree) -> PyTree:
  """The states after a step.

  Args:
    carried: a tree of `Carried`, as they went in.
    seen: the gradients of them.

  Returns:
    What came back; where nothing did, because the place was not reached, what
    went in. A state that was used in several places is NaN from then on, which
    `check_uses` reports.
  """

  def one(old, new):
    def choose(before, after):
      once = jnp.where(new.uses == 1, after, jnp.nan)
      return jnp.where(new.uses == 0, before, once)

    state = jax.tree.map(choose, old.state, new.state)
    return Carried(state, old.uses)

  return jax.tree.map(one, carried, seen, is_leaf=_is_carried)


def check_uses(seen: dict[str, Carried]) -> None:
  """Refuses states that several places have used.

  Args:
    seen: what came back as the gradients of states, by site.

  Raises:
    ValueError: names the first such site.
  """
  for site, carried in seen.items():
    uses = float(np.max(carried.uses))
    if uses > 1:
      raise ValueError(
        f"{site}: {uses:g} places used one state, and autodiff has added up "
        "what they saw. Lift the collection with variable_axes="
        f"{{{COLLECTION!r}: 0}}, or keep() this site's gradient"
      )


def _is_carried(x: Any) -> bool:
  return isinstance(x, Carried)


def visit(grads: plan.Plan, then: taps.Visit) -> taps.Visit:
  """A visit that taps the gradients of sites, after another visit."""

  def tap(module, end, x):
    x, name = then(module, end, x), taps.site(module, end)
    quantizer = grads.assign({name: x})[name]
    if quantizer is compose.keep():
      return x
    with plan.naming(name):
      carried = module.get_variable(COLLECTION, f"<{end}>")
      if carried is None and taps.has_state(quantizer, x):
        raise ValueError(
          "the quantizer of this gradient has a state, and none was given; "
          "ql.grad_state(model, variables, ..., grads=grads) makes one. A flax "
          f"transform around the site must lift {COLLECTION!r}"
        )
      key = module.make_rng(COLLECTION) if module.has_rng(COLLECTION) else None
      return grad_tap(_named(name, quantizer), x, carried, key)

  return tap


def _named(name: str, quantizer: base.Quantizer) -> base.Quantizer:
  """A quantizer whose errors in the backward pass name the site."""

  def apply(x, state, key=None):
    with plan.naming(name):
      return quantizer.apply(x, state, key)

  return base.Quantizer(quantizer.init, apply)
