"""Ranges from what has been seen before."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base, grids, qtensor
from quantlab.transforms import divergence, estimate, observe
from tests import draws

SPEC = base.IntSpec(8, exact_zero=True)
OBSERVERS = {
  "ema": observe.ema(),
  "extremes": observe.extremes(),
  "histogram": observe.histogram(estimate.minmax, bins=256),
}
ALL = pytest.mark.parametrize("name", OBSERVERS)
# Extremes are reduced as the ranges of a moving average are.
KINDS = pytest.mark.parametrize(
  "name",
  ["ema", pytest.param("extremes", marks=pytest.mark.study), "histogram"],
)


@functools.cache
def _update(observer, spec):
  return jax.jit(functools.partial(observer.update, spec=spec))


def _watch(observer, batches, spec=SPEC, weights=None):
  """The statistics of rows `[R, E]` after several batches."""
  stats = observer.init(batches[0].shape[0], jnp.float32)
  for i, rows in enumerate(batches):
    weight = jnp.ones(rows.shape, bool) if weights is None else weights[i]
    stats = _update(observer, spec)(stats, rows, weight)
  return stats


@functools.cache
def _range(observer, spec):
  return jax.jit(functools.partial(observer.range, spec=spec))


def _ends(observer, batches, spec=SPEC, **kwargs):
  stats = _watch(observer, batches, spec, **kwargs)
  return np.stack(_range(observer, spec)(stats))


def _normal(shape, seed=0):
  return draws.normal(shape, seed)


def _batches(count=4, shape=(3, 200)):
  return [(i + 1) * _normal(shape, i) for i in range(count)]


def _same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


STREAM = [
  jnp.array([ends])
  for ends in ((-1.0, 2.0), (-3.0, 1.0), (-0.5, 0.5), (-2.0, 4.0))
]


def test_moving_average_golden_stream():
  found = [_ends(observe.ema(), STREAM[: t + 1])[:, 0] for t in range(4)]
  want = [(-1, 2), (-1.2, 1.9), (-1.13, 1.76), (-1.217, 1.984)]
  np.testing.assert_allclose(found, want, atol=1e-6)


def test_moving_average_without_memory_is_the_last_range():
  found = _ends(observe.ema(decay=0), STREAM)[:, 0]
  np.testing.assert_array_equal(found, [-2, 4])


def test_extremes_are_those_of_everything():
  found = _ends(observe.extremes(), STREAM)[:, 0]
  np.testing.assert_array_equal(found, [-3, 4])


def test_histogram_minmax_is_within_a_bin():
  batches = _batches()
  everything = jnp.concatenate(batches, axis=1)
  found = _ends(OBSERVERS["histogram"], batches)
  width = _watch(OBSERVERS["histogram"], batches).width
  want = np.stack([everything.min(axis=1), everything.max(axis=1)])
  assert np.all(np.abs(found - want) <= np.asarray(width)[None])
  assert np.all(np.asarray(width) <= np.diff(want, axis=0) / 127)


@pytest.mark.parametrize("p", [50.0, 99.0, 99.9])
@pytest.mark.parametrize("relu", [False, True])
def test_histogram_percentiles_are_close(p, relu):
  batches = _batches(shape=(3, 4000))
  if relu:
    batches = [jax.nn.relu(rows) for rows in batches]
  everything = jnp.concatenate(batches, axis=1)
  observer = observe.histogram(estimate.percentile(p))
  found = _ends(observer, batches)
  ones = jnp.ones(everything.shape, bool)
  want = np.stack(estimate.percentile(p)(everything, ones, SPEC))
  width = np.asarray(_watch(observer, batches).width)
  assert np.all(np.abs(found - want) <= 1.01 * width[None])


@pytest.mark.parametrize(
  ("estimator", "tolerance"),
  [
    (estimate.mse, 0.02),
    pytest.param(estimate.mse_golden(), 0.02, marks=pytest.mark.study),
    pytest.param(
      estimate.by_gradient(estimate.absmax, steps=200),
      0.02,
      marks=pytest.mark.study,
    ),
    (divergence.kl(), 0.15),
    (divergence.kl_improved(), 0.15),
  ],
  ids=["mse", "mse_golden", "by_gradient", "kl", "kl_improved"],
)
def test_histograms_find_what_the_elements_would(estimator, tolerance):
  spec = base.IntSpec(4, symmetric=True)
  batches = [_normal((2, 20_000), seed) for seed in range(3)]
  everything = jnp.concatenate(batches, axis=1)
  found = _ends(observe.histogram(estimator), batches, spec)
  search = jax.jit(estimator, static_argnums=2)
  want = search(everything, jnp.ones(everything.shape, bool), spec)
  absmax = np.abs(np.stack(want)).max(axis=0)
  np.testing.assert_allclose(np.abs(found).max(axis=0), absmax, rtol=tolerance)


def test_zeros_of_a_relu_do_not_reach_the_positive_divergence():
  rows = jax.nn.relu(_normal((1, 40_000)) - 1)
  spec = base.IntSpec(8, symmetric=True)
  observer = observe.histogram(divergence.kl_improved(start=127 / 2048))
  found = _ends(observer, [rows], spec)[1, 0]
  search = jax.jit(divergence.kl_improved(start=127 / 2048), static_argnums=2)
  want = search(rows, rows >= 0, spec).hi[0]
  assert found == pytest.approx(float(want), rel=0.1)
  assert found > 2  # with them it is below 0.5


@ALL
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_changes_nothing(name, bad):
  batches = _batches()
  want = _watch(OBSERVERS[name], batches)
  ill = (20 * _normal((3, 200), 9)).at[1, 7].set(bad)
  _same(_watch(OBSERVERS[name], [*batches, ill]), want)
  _same(_watch(OBSERVERS[name], [ill, *batches]), want)
  # ... unless it is not part of the rows.
  mask = jnp.isfinite(ill)
  stats = _update(OBSERVERS[name], SPEC)(want, ill, mask)
  assert np.isfinite(np.stack(_range(OBSERVERS[name], SPEC)(stats))).all()
  with pytest.raises(AssertionError):
    _same(stats, want)


@ALL
def test_a_row_without_weight_keeps_its_statistics(name):
  batches = _batches()
  want = _ends(OBSERVERS[name], batches[:2])
  weights = [jnp.ones((3, 200), bool)] * 2
  weights += [jnp.ones((3, 200), bool).at[1].set(False)] * 2
  found = _ends(OBSERVERS[name], batches, weights=weights)
  np.testing.assert_array_equal(found[:, 1], want[:, 1])
  assert np.all(found[:, 0] != want[:, 0])
  nothing = _ends(OBSERVERS[name], batches[:1], weights=[0 * batches[0]])
  np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_ema_refuses(decay):
  with pytest.raises(ValueError, match=r"decay in \[0, 1\)"):
    observe.ema(decay=decay)


@pytest.mark.parametrize("k", [0, -1.0, float("nan")])
def test_deviations_refuse(k):
  with pytest.raises(ValueError, match="deviations takes a positive k"):
    observe.deviations(k)


def test_deviations_are_not_those_of_all_elements_together():
  observer = observe.deviations(3)
  stats = observer.init(2, jnp.float32)
  weight = jnp.ones((2, 2), bool)
  for low, high in ((-1.0, 1.0), (-1.0, 5.0), (jnp.nan, 9.0)):
    rows = jnp.array([[low, high], [0.0, high]])
    stats = observer.update(stats, rows, weight, ql.INT8)
  range_ = observer.range(stats, ql.INT8)
  assert stats.count.tolist() == [2, 2]  # what is not finite does not count
  # Together: mean 1, deviation the root of 6.
  assert (range_.lo[0], range_.hi[0]) == (-5, 7)
  assert (range_.lo[1], range_.hi[1]) == (1.5 - 4.5, 1.5 + 4.5)


def test_histogram_refuses():
  with pytest.raises(ValueError, match="at least one bin"):
    observe.histogram(bins=0)


# --- tracked


@functools.cache
def _stage(name="ema", granularity=ql.per_tensor, spec=SPEC):
  return observe.tracked(OBSERVERS[name], spec, granularity)


def _steps(quantizer, xs):
  """The quantized tensors and the last statistics."""
  state, out = quantizer.init(xs[0]), []
  for x in xs:
    q, stats = jax.jit(quantizer.apply)(x, state)
    state = state._replace(stats=stats)
    out.append(q)
  return out, stats


@jax.jit
def _covered(q):
  """The ends of a grid."""
  lo, hi = (jnp.full(q.shape, end, jnp.float32) for end in q.grid.bounds)
  return jnp.stack([q.grid.decode(lo).min(), q.grid.decode(hi).max()])


def test_ranges_used_are_those_of_earlier_tensors():
  used = [_covered(q) for q in _steps(_stage(spec=ql.INT8), STREAM)[0]]
  want = [(-1, 2), (-1, 2), (-1.2, 1.9), (-1.13, 1.76)]
  np.testing.assert_allclose(used, want, atol=1e-6)


@ALL
def test_the_grid_does_not_depend_on_the_tensor_itself(name):
  xs = _batches(3)
  out, stats = _steps(_stage(name), xs)
  other, moved = _steps(_stage(name), [*xs[:-1], 100 * xs[-1]])
  _same(out[-1].grid, other[-1].grid)
  assert np.max(stats.stats[-1][-1]) != np.max(moved.stats[-1][-1])


@ALL
def test_the_first_tensor_is_its_own_range(name):
  x = _batches(1)[0]
  (q,), stats = _steps(_stage(name), [x])
  observer = OBSERVERS[name]
  own = _ends(observer, [x.reshape(1, -1)])
  ends = _covered(q)
  np.testing.assert_allclose(
    ends, own[:, 0], atol=1.01 * float(q.grid.scale[0, 0])
  )
  assert stats.count == 1


@ALL
def test_dropped_statistics_leave_the_range(name):
  xs = _batches(3)
  quantizer = ql.chain(_stage(name), ql.nearest())
  _, stats = _steps(quantizer, xs)
  assert stats[0].count == 3
  state = ql.State(((), ()), stats)
  apply = jax.jit(quantizer.apply)
  grid = [apply(x, state)[0].grid for x in (xs[0], 5 * xs[1])]
  _same(*grid)


@ALL
def test_a_tensor_that_is_not_finite_is_not_counted(name):
  xs = _batches(2)
  bad = xs[0].at[0, 0].set(jnp.nan)
  _, want = _steps(_stage(name), xs)
  _, found = _steps(_stage(name), [bad, xs[0], bad, xs[1]])
  _same(found, want)
  assert found.count == 2


@pytest.mark.parametrize(
  ("granularity", "cells"),
  [
    pytest.param(ql.per_tensor, (1, 1, 1), marks=pytest.mark.study),
    (ql.per_channel(-1), (1, 1, 8)),
  ],
)
def test_the_batch_may_vary(granularity, cells):
  xs = [_normal((n, 5, 8), n) for n in (4, 2, 7)]
  out, stats = _steps(_stage("histogram", granularity), xs)
  assert {q.grid.scale.shape for q in out} == {cells}
  assert [q.shape for q in out] == [x.shape for x in xs]
  total = sum(x.size for x in xs)
  assert stats.stats.counts.sum() == total


def test_cells_along_the_batch_are_refused():
  quantizer = _stage(granularity=ql.per_channel(0))
  state = quantizer.init(_normal((4, 8)))
  with pytest.raises(ValueError, match=r"of 4 rows, but .*\(2, 8\).*\(2, 1\)"):
    quantizer.apply(_normal((2, 8)), state)


def test_two_tails_are_refused():
  raw = grids.Raw(jnp.ones((), bool), tails=True)
  q = qtensor.QTensor(jnp.ones((2, 8)), raw, jnp.float32)
  with pytest.raises(ValueError, match="two tails"):
    _stage().apply(q, _stage().init(q))


def test_what_is_masked_is_neither_seen_nor_quantized():
  x = _normal((20, 8)).at[3, 3].set(50.0)
  mask = jnp.abs(x) < 10
  part = qtensor.QTensor(x, grids.Raw(mask), x.dtype)
  q, stats = jax.jit(_stage().apply)(part, _stage().init(part))
  assert stats.stats.hi[0] == jnp.max(jnp.where(mask, x, 0))
  assert q.dequantize()[3, 3] == 0
  fitted = ql.fit(estimate.minmax, SPEC, ql.per_tensor)
  _same(q, jax.jit(fitted.apply)(part, fitted.init(part))[0])


def test_ranges_have_no_gradient():
  x = _normal((20, 8))
  quantizer = ql.chain(_stage(), ql.nearest())
  state = quantizer.init(x)

  def loss(x, stats):
    q, _ = quantizer.apply(x, ql.State(((), ()), stats))
    return jnp.sum(q.dequantize())

  _, seen = jax.jit(quantizer.apply)(x, state)
  inside = (x > 0.98 * jnp.min(x)) & (x < 0.98 * jnp.max(x))
  for stats in (state.stats, seen):
    gradient = np.asarray(jax.jit(jax.grad(loss))(x, stats))
    np.testing.assert_allclose(gradient[np.asarray(inside)], 1, rtol=1e-5)


@KINDS
def test_one_trace_in_scan_and_under_vmap(name):
  quantizer = _stage(name, ql.per_channel(-1))
  xs = jnp.stack(_batches(4, (6, 8)))

  def step(stats, x):
    q, stats = quantizer.apply(x, ql.State(stats=stats))
    return stats, q.grid.scale

  start = quantizer.init(xs[0]).stats
  stats, scales = jax.jit(lambda *args: jax.lax.scan(step, *args))(start, xs)
  out, want = _steps(quantizer, list(xs))
  np.testing.assert_allclose(scales[-1], out[-1].grid.scale, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  many = ql.stacked(quantizer)
  q, stats = jax.jit(many.apply)(xs, many.init(xs))
  assert stats.count.tolist() == [1, 1, 1, 1]
  (alone,), _ = _steps(quantizer, [xs[2]])
  np.testing.assert_allclose(q.grid.scale[2], alone.grid.scale, rtol=1e-6)


@KINDS
def test_a_batch_over_devices_stays_there(name):
  x = _normal((64, 32, 16))
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
  spec = jax.sharding.PartitionSpec("x")
  spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
  for granularity in (ql.per_tensor, ql.per_channel(-1)):
    quantizer = _stage(name, granularity)
    state = quantizer.init(x)
    program = jax.jit(quantizer.apply).lower(spread, state).compile()
    moved = re.findall(
      r"= \w+\[([\d,]+)\]\S* (?:all-gather|all-to-all)", program.as_text()
    )
    sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in moved]
    assert max(sizes, default=0) < x.size / 8
    _, stats = program(spread, state)
    _, want = jax.jit(quantizer.apply)(x, state)
    _same(stats, want)


ESTIMATORS = {
  "minmax": estimate.minmax,
  "absmax": estimate.absmax,
  "percentile": estimate.percentile(99.0),
  "mse": estimate.mse,
  "mse_golden": estimate.mse_golden(),
  "by_gradient": estimate.by_gradient(estimate.absmax, steps=30),
  "kl": divergence.kl(bins=128),
  "kl_improved": divergence.kl_improved(bins=128),
}
WATCHERS = {
  "extremes": observe.extremes(),
  **{f"ema {n}": observe.ema(e) for n, e in ESTIMATORS.items()},
  **{
    f"histogram {n}": observe.histogram(e, bins=256)
    for n, e in ESTIMATORS.items()
  },
}
GRANULARITIES = {
  "tensor": (ql.per_tensor, (1, 1, 1)),
  "channel": (ql.per_channel(-1), (1, 1, 16)),
  "block": (ql.per_block(-1, 8), (1, 40, 2)),
}
# What each estimator finds is in estimate_test: here one of each kind watches.
WATCHING = (
  *("extremes", "ema minmax", "ema absmax", "ema percentile", "ema kl"),
  *("histogram absmax", "histogram percentile", "histogram mse"),
  "histogram kl_improved",
)
# Rows are rows to an estimator: each sees one of the three kinds of them.
CELLS = [
  pytest.param(
    *(name, cells), marks=[pytest.mark.study] * (name not in WATCHING)
  )
  for i, name in enumerate(WATCHERS)
  for j, cells in enumerate(GRANULARITIES)
  if i % 3 == j
]


@pytest.mark.parametrize(("name", "granularity"), CELLS)
def test_on_activations_and_weights(name, granularity):
  granularity, cells = GRANULARITIES[granularity]
  spec = base.IntSpec(6, symmetric=True)
  quantizer = ql.chain(
    observe.tracked(WATCHERS[name], spec, granularity), ql.nearest()
  )
  xs = [jax.nn.relu(_normal((1, 40, 16), i)) for i in range(2)]
  out, stats = _steps(quantizer, xs)
  assert stats[0].count == 2
  assert out[1].grid.scale.shape == cells
  for x in (xs[0], _normal((1, 40, 16), 5)):
    (q,), _ = _steps(quantizer, [x])
    out, x = np.asarray(q.dequantize()), np.asarray(x)
    error = np.mean((out - x) ** 2) / np.mean(x**2)
    # Positive elements alone say little about weights.
    assert error < (0.15 if "improved" in name else 0.05)


# --- the estimators of arXiv 2105.04246


def test_hindsight_is_running_one_step_later():
  xs = _batches(5)
  running = observe.tracked(observe.ema(), SPEC, ql.per_tensor, hindsight=False)
  ahead, _ = _steps(running, xs)
  behind, _ = _steps(_stage(), xs)
  for before, after in zip(ahead, behind[1:], strict=False):
    _same(before.grid, after.grid)
  assert np.any(ahead[-1].grid.scale != behind[-1].grid.scale)


def test_running_ranges_depend_on_the_tensor_itself():
  xs = _batches(3)
  running = observe.tracked(observe.ema(), SPEC, ql.per_tensor, hindsight=False)
  out, _ = _steps(running, xs)
  other, _ = _steps(running, [*xs[:-1], 100 * xs[-1]])
  assert np.any(out[-1].grid.scale != other[-1].grid.scale)


def test_periodic_estimates_every_so_often():
  observer = observe.periodic(estimate.minmax, every=3)
  found = [_ends(observer, STREAM[: t + 1])[:, 0] for t in range(4)]
  np.testing.assert_array_equal(found, [(-1, 2), (-1, 2), (-1, 2), (-2, 4)])


def test_periodic_counts_only_what_is_finite():
  observer = observe.periodic(estimate.minmax, every=2)
  bad = jnp.array([[jnp.nan, 1.0]])
  found = _ends(observer, [bad, STREAM[0], bad, STREAM[1], STREAM[3]])[:, 0]
  np.testing.assert_array_equal(found, [-2, 4])


def test_periodic_refuses():
  with pytest.raises(ValueError, match="at least 1, got every=0"):
    observe.periodic(estimate.minmax, every=0)


STREAMS = {
  "stationary": lambda t: 1.0 + 0 * t,
  "decay": lambda t: np.exp(-t / 100),
  "growth": lambda t: np.exp(t / 150),
  "drop": lambda t: np.where(t < 300, 1.0, 0.05),
}
# In dB: current; running of 0.9; in-hindsight of 0, 0.9 and 0.99.
SQNR = {
  "stationary": (36.1, 35.4, 34.6, 35.3, 35.2),
  "decay": (36.1, 35.1, 34.7, 35.0, 23.3),
  "growth": (36.1, 35.2, 34.5, 34.9, 26.0),
  "drop": (36.0, 29.9, 33.0, 29.3, 20.4),
}


@functools.cache
def _laplace():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.laplace(size=(600, 20_000)), jnp.float32)


@functools.cache
def _errors_of_streams():
  """`run(scales [T], x [T, E])`: relative errors `[T, quantizers]`."""
  tracked = functools.partial(observe.tracked, spec=SPEC)
  stages = [
    ql.fit(estimate.minmax, SPEC, ql.per_tensor),
    tracked(observe.ema(), granularity=ql.per_tensor, hindsight=False),
    *(
      tracked(observe.ema(decay=decay), granularity=ql.per_tensor)
      for decay in (0, 0.9, 0.99)
    ),
  ]
  quantizers = [ql.chain(stage, ql.nearest()) for stage in stages]

  def step(stats, at):
    scale, x = at
    x, after, errors = scale * x, [], []
    for quantizer, s in zip(quantizers, stats, strict=True):
      state = ql.State(((), ()), s)
      q, s = quantizer.apply(x, state)
      after.append(s)
      errors.append(jnp.mean((q.dequantize() - x) ** 2) / jnp.mean(x**2))
    return after, jnp.stack(errors)

  @jax.jit
  def run(scales, x):
    start = [quantizer.init(x[0]).stats for quantizer in quantizers]
    return jax.lax.scan(step, start, (scales, x))[1]

  return run


@pytest.mark.parametrize("name", STREAMS)
def test_ranges_of_drifting_gradients(name):
  scales = np.float32(STREAMS[name](np.arange(600)))
  errors = _errors_of_streams()(scales, _laplace())
  found = -10 * np.log10(np.mean(np.asarray(errors)[5:], axis=0))
  np.testing.assert_allclose(
    found, SQNR[name], atol=0.8 if name == "drop" else 0.6
  )
