"""Calibration: what static ranges of activations are made from."""

from collections.abc import Callable, Iterable
import sys
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quantlab.apply import linen, taps
from quantlab.core import base
from quantlab.transforms import plan

PyTree = Any
Entries = dict[str, taps.Entry]
Run = Callable[[PyTree, tuple[Any, ...], Entries], Entries]


def _bar(batches: Iterable[Any], text: str) -> Iterable[Any]:
  """Iterates under a progress bar, if somebody can see it."""
  import rich.progress  # takes a while, and only jobs need it

  hidden = not sys.stdout.isatty()
  return rich.progress.track(batches, text, transient=True, disable=hidden)


def calibrate(
  model: nn.Module,
  variables: PyTree,
  batches: Iterable[Any],
  acts: Any,
  *,
  track: Callable[[Iterable[Any], str], Iterable[Any]] = _bar,
  **kwargs: Any,
) -> base.State:
  """Collects the statistics of activations over batches.

  The activations pass unquantized, so that a site does not see the errors of
  those before it. Every batch goes through one compiled step, as long as shapes
  do not change; on several devices the statistics are those of whole batches.

  Args:
    model: an unbound linen module.
    variables: its variables; any parameter may be quantized.
    batches: one by one. A tuple is the positional arguments of the model's
      method, of arrays; anything else is the only argument.
    acts: a plan over sites, or a quantizer for every site; see `apply`.
    track: shows progress: `track(batches, text)` iterates over batches. By
      default a bar of rich, where stdout is a terminal.
    **kwargs: of `model.apply`, the same for all batches.

  Returns:
    For each site whose quantizer has a state: `State(learned={site: ...},
    stats={site: ...})`. What is learned starts from the first batch.

  Raises:
    ValueError: there are no batches; a rule places its quantizer on no site of
      the first batch; a site has no rule, runs in no batch or sees NaN or Inf;
      or a flax transform does not lift the state.

  Example:
    >>> import quantlab as ql
    >>> model = nn.Dense(4)
    >>> batches = [jnp.ones((2, 8)), 3 * jnp.ones((2, 8))]
    >>> variables = model.init(jax.random.key(0), batches[0])
    >>> static = ql.chain(
    ...   ql.tracked(ql.extremes(), ql.INT8, ql.per_tensor), ql.nearest()
    ... )
    >>> acts = ql.by_path([("in$", static), ("out$", ql.keep())])
    >>> state = calibrate(model, variables, batches, acts)
    >>> y, _ = ql.apply(model, variables, batches[0], acts=acts, state=state)
    >>> list(state.stats), y.shape
    (['in'], (2, 4))
  """
  rules = plan.as_plan(acts)

  def compiled(visit: taps.Visit) -> Run:
    token = taps.token(visit)  # of a function that is new in each calibration

    @jax.jit
    def run(variables, args, entries):
      return linen.run(visit, model, variables, args, kwargs, entries, token)[1]

    return run

  step = compiled(_observe(rules))
  entries, found, count = {}, {}, 0
  for batch in track(batches, "calibrating"):
    args = batch if isinstance(batch, tuple) else (batch,)
    if not count:
      found = linen.sites(model, variables, *args, **kwargs)
      taps.check_used(rules, found)
      entries = _started(compiled, rules, found, variables, args)
    entries = step(variables, args, entries)
    count += 1
  order = [site for site in {**found, **entries} if site in entries]
  entries = {site: entries[site] for site in order}
  _check(entries, count)
  return base.State(
    {site: entry.state.learned for site, entry in entries.items()},
    {site: entry.stats.stats for site, entry in entries.items()},
  )


def _started(
  compiled: Callable[[taps.Visit], Run],
  acts: plan.Plan,
  found: taps.Sites,
  variables: PyTree,
  args: tuple[Any, ...],
) -> Entries:
  """The entries before the first step, which compiles once if it finds them."""
  begin = _begin(acts)
  try:
    return compiled(begin)(variables, args, {})
  except TypeError as error:
    # The carry of a loop and the branches of a condition cannot gain entries:
    # theirs are made outside.
    first_error = error
  entries = {}
  for site, x in found.items():
    if not taps.has_state(acts.assign({site: x})[site], x):
      continue
    try:
      jax.eval_shape(compiled(_only(site, begin)), variables, args, {})
    except TypeError:
      entries[site] = _from_shape(acts, site, x, first_error)
  return compiled(begin)(variables, args, entries)


class Watched(NamedTuple):
  """Statistics, and what is worth knowing of how they came about.

  Attributes:
    stats: of the quantizer.
    calls: int32, how many there were.
    finite: bool, whether they saw neither NaN nor Inf.
  """

  stats: PyTree
  calls: jax.Array
  finite: jax.Array


def _watched(quantizer: base.Quantizer) -> base.Quantizer:
  """A quantizer whose statistics are `Watched`."""

  def init(x):
    learned, stats = quantizer.init(x)
    watched = Watched(stats, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return base.State(learned, watched)

  def apply(x, state, key=None):
    stats, calls, finite = state.stats
    q, stats = quantizer.apply(x, base.State(state.learned, stats), key)
    return q, Watched(stats, calls + 1, finite & jnp.isfinite(x).all())

  return base.Quantizer(init, apply)


def _first(quantizer: base.Quantizer, x: jax.Array) -> taps.Entry:
  return taps.Entry.start(_watched(quantizer).init(x))


def _begin(acts: plan.Plan) -> taps.Visit:
  """A visit that makes the entries. Activations pass."""
  return taps.at_sites(acts, _first, lambda _, x, entry, key: (x, entry))


def _observe(acts: plan.Plan) -> taps.Visit:
  """A visit that moves the statistics. Activations pass."""

  def update(quantizer, x, entry, key):
    if entry is None:
      return x, None
    # A random stage needs a key; what it makes is dropped.
    key = jax.random.key(0) if key is None else key
    return x, entry.moved(_watched(quantizer), x, key)

  return taps.at_sites(acts, _first, update)


def _only(site: str, visit: taps.Visit) -> taps.Visit:
  """A visit of one site."""
  return lambda module, end, x: (
    visit(module, end, x) if taps.site(module, end) == site else x
  )


def _from_shape(
  acts: plan.Plan, site: str, x: jax.ShapeDtypeStruct, error: TypeError
) -> taps.Entry:
  """The entry of a site before the model runs."""
  entry = _first(acts.assign({site: x})[site], jnp.zeros(x.shape, x.dtype))
  if jax.tree.leaves(entry.state.learned):
    raise ValueError(
      f"{site}: what its quantizer learns starts from an activation, which "
      "flax cannot bring out of this loop or branch"
    ) from error
  return entry


def _check(entries: Entries, count: int) -> None:
  """Refuses statistics that would give no grid."""
  if not count:
    raise ValueError("calibrate needs at least one batch, got none")
  for site, entry in entries.items():
    seen = jax.device_get(entry.stats)
    if not np.all(seen.calls):
      raise ValueError(
        f"{site}: did not run in any of {count} batches, so it has no "
        "statistics; keep() it, or give batches that get there"
      )
    # Statistics themselves may hold an Inf that stands for none.
    if not np.all(seen.finite) or any(map(_has_nan, jax.tree.leaves(seen))):
      raise ValueError(
        f"{site}: its statistics are not finite; in some of {count} batches "
        "the activation holds NaN or Inf, here first"
      )


def _has_nan(x: Any) -> bool:
  return bool(np.isnan(x).any())
