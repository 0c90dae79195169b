"""Sites: the float arrays that enter and leave the modules of a model.

`<path>/in` is the first float array among the positional arguments of a call of
the module at that path. `<path>/out` is what the call returns, an array or the
first float array of a tuple. `in` and `out` alone are the model's own.

The state of a site's quantizer is in the flax collection `acts`, as flax keeps
the statistics of a batch norm. So it goes wherever flax carries a collection:
through `jit`, `nn.remat` and `nn.jit`, and through `nn.scan`, `nn.vmap` and
`nn.RNN` if they lift it.
"""

from collections.abc import Callable
import functools
import itertools
from typing import Any, NamedTuple

from flax import core, traverse_util
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import base
from quantlab.transforms import compose, plan

Array = jax.Array
PyTree = Any

Sites = dict[str, jax.ShapeDtypeStruct]

COLLECTION = "acts"
"""The flax collection of the states; also the name of the stream of keys."""

Visit = Callable[[nn.Module, str, Array], Array]
"""Sees and replaces the array at one end, `in` or `out`, of a module's call."""


class Entry(NamedTuple):
  """What the collection holds for a site.

  Attributes:
    state: what the quantizer runs with, the same in every call of one run.
    stats: `state.stats`, moved by every call. They are two, so that a module
      that is called twice has one grid, whatever its first call saw.
  """

  state: base.State
  stats: PyTree

  @classmethod
  def start(cls, state: base.State) -> "Entry":
    """The entry before any call."""
    return cls(state, state.stats)

  def moved(
    self, quantizer: base.Quantizer, x: Array, key: Array | None
  ) -> "Entry":
    """The entry after a call."""
    state = base.State(self.state.learned, self.stats)
    _, stats = quantizer.apply(x, state, key)
    return Entry(self.state, stats)


def interceptor(visit: Visit) -> Callable[..., Any]:
  """A flax interceptor that shows `visit` the array of each site."""
  active = []

  def intercept(next_method, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__" or module.scope is None:
      return next_method(*args, **kwargs)
    # A call by super(), or of a copy that runs from packed weights.
    if active and module.path in ((), active[-1]):
      return next_method(*args, **kwargs)
    active.append(module.path)
    try:
      args = _first(functools.partial(visit, module, "in"), args)
      out = next_method(*args, **kwargs)
    finally:
      active.pop()
    leave = functools.partial(visit, module, "out")
    if type(out) in (tuple, list):
      return _first(leave, out)
    return leave(jnp.asarray(out)) if _is_float(out) else out

  return intercept


def _first(function: Callable[[Array], Array], values: Any) -> Any:
  """Replaces the first float array of a tuple or list."""
  at = next((i for i, x in enumerate(values) if _is_float(x)), None)
  if at is None:
    return values
  new = list(values)
  new[at] = function(jnp.asarray(new[at]))
  return type(values)(new)


def _is_float(x: Any) -> bool:
  array = isinstance(x, jax.Array | np.ndarray)
  return array and jnp.issubdtype(x.dtype, jnp.floating)


def site(module: nn.Module, end: str) -> str:
  """The name of a site."""
  return "/".join((*module.path, end))


def recorded(found: Sites, visit: Visit) -> Visit:
  """The same visit, which also notes the sites in order of their first calls.

  Behind an `nn.jit` that jax finds compiled, nothing is noted.
  """

  def visit_and_note(module, end, x):
    struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
    found.setdefault(site(module, end), struct)
    return visit(module, end, x)

  return visit_and_note


def at_sites(
  acts: plan.Plan,
  missing: Callable[[base.Quantizer, Array], Entry],
  update: Callable[..., tuple[Array, Entry | None]],
) -> Visit:
  """A visit of the sites that a plan does not keep.

  Args:
    acts: places quantizers on sites.
    missing: `missing(quantizer, x) -> entry`, of a quantizer with a state.
    update: `update(quantizer, x, entry, key) -> (x, entry)`. The entry is None
      if the quantizer has no state, the key where there is no stream of them.

  Returns:
    The visit.
  """

  def visit(module, end, x):
    name, variable = site(module, end), f"<{end}>"  # no submodule is named so
    quantizer = acts.assign({name: x})[name]
    if quantizer is compose.keep():
      return x
    key = module.make_rng(COLLECTION) if module.has_rng(COLLECTION) else None
    with plan.naming(name):
      entry = module.get_variable(COLLECTION, variable)
      if entry is None and has_state(quantizer, x):
        _check_lifted(module)
        entry = missing(quantizer, x)
      x, entry = update(quantizer, x, entry, key)
    if entry is not None:
      module.put_variable(COLLECTION, variable, entry)
    return x

  return visit


def has_state(quantizer: base.Quantizer, x: Any) -> bool:
  """Whether a quantizer of `x`, an array or its shape, has a state."""
  return bool(jax.tree.leaves(jax.eval_shape(quantizer.init, x)))


def _check_lifted(module: nn.Module) -> None:
  if not module.is_mutable_collection(COLLECTION):
    raise ValueError(
      "the quantizer of this site has a state, which the lifted transform "
      f"around it does not lift. Add variable_axes={{{COLLECTION!r}: 0}} for "
      "one state per index (nn.vmap, nn.scan over layers), or "
      f"variable_carry={COLLECTION!r} for one state of all steps (nn.RNN, "
      "nn.scan over time)"
    )


def nest(entries: dict[str, Any]) -> PyTree:
  """The collection that holds the entries of sites."""
  paths = {site: tuple(site.split("/")) for site in entries}
  flat = {(*p[:-1], f"<{p[-1]}>"): entries[site] for site, p in paths.items()}
  return traverse_util.unflatten_dict(flat)


def unnest(collection: PyTree) -> dict[str, Entry]:
  """The inverse of `nest`."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(collection)
  return {"/".join((*p[:-1], p[-1][1:-1])): entry for p, entry in flat.items()}


def check_used(acts: plan.Plan, found: Sites) -> None:
  """Refuses a plan with a rule that places its quantizer on no site."""
  unused = acts.unused(found)
  if unused:
    raise ValueError(
      f"no site of the model matches {unused}; its sites are {[*found]}"
    )


_COUNTER = itertools.count()


@functools.lru_cache(maxsize=512)
def token(*visit: Any) -> str:
  """A name for what is done at the sites, the same for the same visit."""
  del visit
  return f"{COLLECTION}-{next(_COUNTER)}"


def mutable(filter_: Any, token: str) -> Any:
  """A flax filter, with the collection of the sites added.

  `nn.jit` knows nothing of interceptors, but it looks for a compiled function
  by this filter, among other things. A collection that nobody has, named by the
  token, keeps it from taking one that was traced with other taps.
  """
  wider = core.scope.union_filters(filter_, COLLECTION)
  if isinstance(wider, set):
    return sorted({*wider, token})
  return core.scope.subtract_filters(wider, token)
