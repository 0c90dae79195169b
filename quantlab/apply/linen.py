"""Runs a linen model, from packed weights and with quantized activations."""

from typing import Any

from flax import linen as nn
import jax
import numpy as np

from quantlab.apply import gradients, packed, taps
from quantlab.core import base, qtensor
from quantlab.transforms import compose, plan

PyTree = Any

_ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)


def apply(
  model: nn.Module,
  variables: PyTree,
  *args: Any,
  acts: Any = None,
  state: base.State | None = None,
  grads: Any = None,
  grad_state: dict[str, gradients.Carried] | None = None,
  **kwargs: Any,
) -> Any:
  """`model.apply(variables, *args, **kwargs)`, quantized.

  Dense, DenseGeneral, Conv, Einsum and Embed, and so the recurrent cells and
  attention made of them, send products with packed weights to `kernels.ops`.
  Any other module that owns a quantized parameter gets it dequantized.

  With `acts`, each site's activation is replaced by its quantized value, before
  the product that reads it; gradients pass as through the quantizer. `sites`
  lists the sites. Only calls of modules have any: what functions make inside a
  module, such as `nn.relu`, a softmax or the products of attention, passes
  through the `in` of the module that takes it or the `out` of the one around.

  A range that is computed from the tensor (`fit`) is dynamic: it follows each
  batch. One that is tracked is static: it comes from `state`, whatever the
  batch; the statistics that are returned have seen the batch, and an evaluation
  drops them.

  With `grads`, the gradient that arrives at a site from above is quantized
  before it goes on, and the call itself is unchanged; see `grad_tap`. Of a
  layer's `out` it is what both products of its backward pass read.

  A state goes through flax transforms in the collection `acts`, that of
  gradients in `grads`. One that lifts collections by name has to lift them:
  `nn.scan` over layers and `nn.vmap` with `variable_axes={"params": 0, "acts":
  0}`, which gives each layer a state of its own, `nn.RNN` and `nn.scan` over
  time with `variable_carry="acts"`.

  Args:
    model: an unbound linen module.
    variables: its variables; any parameter may be quantized.
    *args: of the model's method.
    acts: a plan over sites, such as `by_path([("/in$", rtn(8)), (".*",
      keep())])`, or a quantizer for every site.
    state: of the quantizers of activations, from `calibrate`. Those that have
      none, such as `rtn`, need none.
    grads: a plan over sites, or a quantizer for every site, of gradients.
    grad_state: of the quantizers of gradients, from `grad_state`; the gradient
      with respect to it is its next value, for `overwritten`.
    **kwargs: of `model.apply`, such as `method`, `rngs`, `mutable`. Quantizers
      that need a key get it from the streams `rngs={"acts": key, "grads":
      key}`.

  Returns:
    What `model.apply` returns; with `acts` a pair of that and the statistics
    `{site: ...}`, in the structure of `state.stats`.

  Raises:
    ValueError: a rule of `acts` or `grads` places a quantizer on no site, a
      site has no rule or its state is missing, or a flax transform does not
      lift the state.

  Example:
    >>> import jax.numpy as jnp
    >>> import quantlab as ql
    >>> model, x = nn.Dense(8), jnp.ones((1, 32))
    >>> variables = model.init(jax.random.key(0), x)
    >>> weights = ql.by_path([("bias", ql.keep()), ("kernel", ql.rtn(8))])
    >>> w8 = ql.quantize(weights, variables)
    >>> apply(model, w8, x).shape
    (1, 8)
    >>> acts = ql.by_path([("in$", ql.rtn(8)), (".*", ql.keep())])
    >>> w8a8, stats = apply(model, w8, x, acts=acts)
    >>> w8a8.shape
    (1, 8)
  """
  for name, needed, given in (
    ("state", "acts", state is not None and acts is None),
    ("grad_state", "grads", grad_state is not None and grads is None),
  ):
    if given:
      raise ValueError(f"a {name} needs the plan it belongs to: give {needed}")
  if acts is None and grads is None:
    with nn.intercept_methods(packed.intercept):
      return model.apply(variables, *args, **kwargs)
  found = {}
  rules = {
    name: plan.as_plan(compose.keep() if given is None else given)
    for name, given in (("acts", acts), ("grads", grads))
  }
  visit = _quantize(rules["acts"])
  if grads is not None:
    visit = gradients.visit(rules["grads"], visit)
    carried = taps.nest(grad_state or {})
    variables = {**variables, gradients.COLLECTION: carried}
  visit = taps.recorded(found, visit)
  entries = {} if state is None else _entries(state)
  token = taps.token("quantize", acts, grads)
  out, entries = run(visit, model, variables, args, kwargs, entries, token)
  for each in rules.values():
    if each.unused(found):  # unless the rest is behind an nn.jit
      taps.check_used(each, sites(model, variables, *args, **kwargs))
  if acts is None:
    return out
  return out, {site: entry.stats for site, entry in entries.items()}


def sites(
  model: nn.Module, variables: PyTree, *args: Any, **kwargs: Any
) -> taps.Sites:
  """The sites of a model's activations; computes shapes alone.

  Args:
    model: an unbound linen module.
    variables: its variables, or their shapes.
    *args: of the model's method; shapes will do.
    **kwargs: of `model.apply`.

  Returns:
    Shape and dtype of the activation at each site, in the order of their first
    calls. Inside `nn.scan` and `nn.vmap` they are those of one index.

  Example:
    >>> import jax.numpy as jnp
    >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(4)])
    >>> x = jnp.ones((2, 16))
    >>> found = sites(model, model.init(jax.random.key(0), x), x)
    >>> list(found)
    ['in', 'layers_0/in', 'layers_0/out', 'layers_2/in', 'layers_2/out', 'out']
    >>> found["layers_2/in"].shape
    (2, 8)
  """
  found = {}
  visit = taps.recorded(found, lambda module, end, x: x)
  token = taps.token("sites", object())  # nothing is found compiled
  leaves, tree = jax.tree.flatten((variables, args, kwargs))
  arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, _ARRAYS)}

  def walk(arrays):
    values = [arrays.get(i, x) for i, x in enumerate(leaves)]
    variables, args, kwargs = jax.tree.unflatten(tree, values)
    run(visit, model, variables, args, kwargs, {}, token)

  jax.eval_shape(walk, arrays)
  return found


def grad_state(
  model: nn.Module, variables: PyTree, *args: Any, grads: Any, **kwargs: Any
) -> dict[str, gradients.Carried]:
  """The first states of the gradients' quantizers.

  Args:
    model: an unbound linen module.
    variables: its variables, or their shapes.
    *args: of the model's method; shapes will do.
    grads: a plan over sites, or a quantizer for every site; see `apply`.
    **kwargs: of `model.apply`.

  Returns:
    `{site: Carried}` for every site that is not kept.

  Raises:
    ValueError: a rule places its quantizer on no site, or one of them learns.
  """
  found = sites(model, variables, *args, **kwargs)
  rules = plan.as_plan(grads)
  taps.check_used(rules, found)
  states = {}
  for site, quantizer in rules.assign(found).items():
    if quantizer is not compose.keep():
      with plan.naming(site):
        states[site] = gradients.carry(quantizer, found[site])
  return states


def run(
  visit: taps.Visit,
  model: nn.Module,
  variables: PyTree,
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  entries: dict[str, taps.Entry],
  token: str,
) -> tuple[Any, dict[str, taps.Entry]]:
  """`model.apply` with a visit of all sites.

  Args:
    visit: what is done at each site.
    model: as in `apply`, and so the next three.
    variables: without the collection of the sites.
    args: of the model's method.
    kwargs: of `model.apply`.
    entries: of sites, before.
    token: names the visit; see `taps.mutable`.

  Returns:
    What `model.apply` returns, and the entries after.
  """
  if taps.COLLECTION in variables:
    raise ValueError(
      f"the collection {taps.COLLECTION!r} of variables is used by the taps of "
      "activations; give it another name in the model"
    )
  asked = kwargs.get("mutable", False)
  kwargs = {**kwargs, "mutable": taps.mutable(asked, token)}
  variables = {**variables, taps.COLLECTION: taps.nest(entries)}
  with (
    nn.intercept_methods(taps.interceptor(visit)),
    nn.intercept_methods(packed.intercept),
  ):
    out, changed = model.apply(variables, *args, **kwargs)
  changed = dict(changed)
  entries = taps.unnest(changed.pop(taps.COLLECTION, {}))
  return out if asked is False else (out, changed), entries


def _quantize(acts: plan.Plan) -> taps.Visit:
  """A visit that quantizes activations and moves the statistics."""

  def missing(quantizer, x):
    raise ValueError(
      "the quantizer of this site has a state, and none was given for it; "
      "ql.calibrate(model, variables, batches, acts) makes one"
    )

  def update(quantizer, x, entry, key):
    if entry is None:  # what init makes is all structure
      q, _ = quantizer.apply(x, jax.eval_shape(quantizer.init, x), key)
      return qtensor.dequantize(q), None
    q, stats = quantizer.apply(x, entry.state, key)
    if entry.stats is entry.state.stats:  # as at most sites: its first call
      entry = entry._replace(stats=stats)
    else:
      entry = entry.moved(quantizer, x, key)
    return qtensor.dequantize(q), entry

  return taps.at_sites(acts, missing, update)


def _entries(state: base.State) -> dict[str, taps.Entry]:
  return {
    site: taps.Entry.start(base.State(state.learned[site], stats))
    for site, stats in state.stats.items()
  }
