import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from tests import tiny_models as tiny

BATCHES = [tiny.normal(4, 6), 3 * tiny.normal(4, 6, seed=1), tiny.normal(2, 6)]
ACTS = tiny.on("in$")


def _mlp():
  model = tiny.Mlp()
  return model, jax.jit(model.init)(jax.random.key(0), BATCHES[0])


def test_statistics_are_those_of_all_batches_without_quantization():
  model, variables = _mlp()
  state = ql.calibrate(model, variables, BATCHES, ACTS)
  assert list(state.stats) == ["in", "Dense_0/in", "Dense_1/in"]
  hidden = [
    nn.relu(nn.Dense(8).apply({"params": variables["params"]["Dense_0"]}, x))
    for x in BATCHES
  ]
  for site, values in (("Dense_0/in", BATCHES), ("Dense_1/in", hidden)):
    expected = max(jnp.max(jnp.abs(x)).item() for x in values)
    np.testing.assert_allclose(
      tiny.largest(state.stats[site]), expected, rtol=1e-6
    )
    first = tiny.largest(
      ql.calibrate(model, variables, BATCHES[:1], ACTS).stats[site]
    )
    assert first < expected


def test_batches_are_tuples_of_arguments_or_the_only_one():
  class Sum(nn.Module):
    @nn.compact
    def __call__(self, x, y=None):
      return nn.Dense(2)(x["a"] if y is None else x + y)

  x = BATCHES[0]
  variables = jax.jit(Sum().init)(jax.random.key(0), x, x)
  acts = tiny.on("dense_0/in")
  two = ql.calibrate(Sum(), variables, [(x, x)], acts)
  one = ql.calibrate(Sum(), variables, iter([{"a": 2 * x}]), acts)
  jax.tree.map(np.testing.assert_array_equal, two, one)


def test_one_step_is_compiled_for_all_batches():
  traces = []

  class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
      traces.append(x.shape)
      return nn.Dense(2)(x)

  model = Counting()
  variables = jax.jit(model.init)(jax.random.key(0), BATCHES[0])
  traces.clear()
  ql.calibrate(model, variables, BATCHES[:2], ACTS)
  once = len(traces)
  traces.clear()
  ql.calibrate(model, variables, BATCHES[:2] * 5, ACTS)
  assert len(traces) == once


def test_the_state_can_be_stored(tmp_path):
  model, variables = _mlp()
  state = ql.calibrate(model, variables, BATCHES, ACTS)
  ql.save(tmp_path / "state", state)
  restored = ql.restore(tmp_path / "state")
  assert isinstance(restored, ql.State)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  runs = [
    ql.apply(model, variables, BATCHES[0], acts=ACTS, state=s)[0]
    for s in (state, restored)
  ]
  np.testing.assert_array_equal(*runs)


def test_progress_is_shown_where_somebody_looks(capsys):
  model, variables = _mlp()
  ql.calibrate(model, variables, BATCHES, ACTS)
  assert capsys.readouterr() == ("", "")
  shown = []

  def track(batches, text):
    for batch in batches:
      yield batch
      shown.append(text)

  ql.calibrate(model, variables, BATCHES, ACTS, track=track)
  assert shown == ["calibrating"] * 3


def test_a_plan_without_state_has_nothing_to_calibrate():
  model, variables = _mlp()
  acts = tiny.on("in$", ql.rtn(8))
  assert ql.calibrate(model, variables, BATCHES, acts) == ql.State({}, {})


def _static(observer, bits=8):
  return ql.chain(
    ql.tracked(observer, ql.IntSpec(bits), ql.per_tensor), ql.nearest()
  )


OBSERVERS = {
  "extremes": ql.extremes(),
  "ema": ql.ema(ql.minmax, decay=0.5),
  "histogram": ql.histogram(ql.minmax, bins=64),
}
TOKENS = jnp.arange(10).reshape(2, 5)
MODELS = {
  "mlp": (tiny.Mlp(), tiny.normal(4, 6)),
  "conv": (tiny.ConvNet(), tiny.normal(2, 4, 4, 1)),
  "attention": (tiny.Transformer(), TOKENS),
  "stack": (tiny.Stack(), tiny.normal(4, 4)),
}


@pytest.mark.parametrize(
  ("name", "widths"),
  [
    pytest.param("mlp", (8, 4), marks=pytest.mark.study),
    ("conv", (8, 4)),
    ("attention", (8,)),
    pytest.param("attention", (8, 4), marks=pytest.mark.study),
    ("stack", (8, 4)),
  ],
)
def test_every_site_of_a_model_at_once(name, widths, tmp_path):
  model, x = MODELS[name]
  variables = jax.jit(model.init)(jax.random.key(0), x)
  weights = ql.by_path([("kernel", ql.rtn(8)), ("", ql.keep())])
  if name == "stack":
    weights = ql.by_path([("kernel", ql.stacked(ql.rtn(8))), ("", ql.keep())])
  packed = {**variables, "params": ql.quantize(weights, variables["params"])}
  exact = np.asarray(jax.jit(model.apply)(variables, x))
  errors = {}
  for bits in widths:
    acts = _static(OBSERVERS["extremes"], bits)
    state = ql.calibrate(model, packed, [x, x], acts)
    assert list(state.stats) == list(ql.sites(model, variables, x))
    for count, range_ in (seen for seen, _ in state.stats.values()):
      assert np.all(count >= 2)
      assert np.all(range_.hi > range_.lo)
    ql.save(tmp_path / f"{bits}", state)
    restored = ql.restore(tmp_path / f"{bits}")
    run = jax.jit(functools.partial(ql.apply, model, acts=acts))
    y, _ = run(packed, x, state=restored)
    errors[bits] = np.linalg.norm(y - exact) / np.linalg.norm(exact)
  assert 0 < errors[8] < 0.04
  assert sorted(errors, key=errors.get) == [*widths]  # fewer bits, more error
  assert max(errors.values()) < 0.6


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_are_carried_from_batch_to_batch(name):
  observer = OBSERVERS[name]
  model, variables = _mlp()
  acts = tiny.on("dense_0/in", _static(observer))
  state = ql.calibrate(model, variables, BATCHES, acts)
  stats, update = (
    observer.init(1, jnp.float32),
    jax.jit(observer.update, static_argnums=3),
  )
  for x in BATCHES:
    rows = x.reshape(1, -1)
    stats = update(stats, rows, jnp.ones_like(rows), ql.INT8)
  count, found = state.stats["Dense_0/in"][0]
  assert count == len(BATCHES)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, stats
  )


class Mixed(nn.Module):
  """A stack of layers, each with a state, before a recurrence with one."""

  @nn.compact
  def __call__(self, x):
    x = tiny.Stack(name="stack")(x)
    return nn.RNN(nn.SimpleCell(4), variable_carry="acts", name="rnn")(x)


def test_stacks_and_recurrences_in_one_model():
  x = tiny.normal(2, 5, 4)
  variables = jax.jit(Mixed().init)(jax.random.key(0), x)
  acts = tiny.on("dense_0/in|/i/in")
  state = ql.calibrate(Mixed(), variables, [x, 2 * x], acts)
  shapes = [tiny.largest(stats).shape for stats in state.stats.values()]
  assert shapes == [(3,), ()]
  y, _ = ql.apply(Mixed(), variables, x, acts=acts, state=state)
  exact = Mixed().apply(variables, x)
  assert 0 < jnp.max(jnp.abs(y - exact)) < 0.1


@pytest.mark.parametrize(
  "name",
  # Its range is that of the extremes.
  [pytest.param("ema", marks=pytest.mark.study), "extremes", "histogram"],
)
def test_sites_that_are_zero_have_statistics_all_the_same(name):
  model, x = nn.Dense(3), jnp.zeros((4, 6))
  variables = jax.jit(model.init)(jax.random.key(0), x)
  acts = _static(OBSERVERS[name])
  state = ql.calibrate(model, variables, [x], acts)
  run = jax.jit(functools.partial(ql.apply, model, acts=acts))
  y, _ = run(variables, x, state=state)
  np.testing.assert_array_equal(y, jnp.zeros((4, 3)))


def test_what_is_learned_cannot_start_inside_a_loop():
  scale = ql.Quantizer(
    lambda x: ql.State(jnp.max(x)), lambda x, state, key=None: (x, ())
  )
  x = tiny.normal(2, 5, 4)
  variables = jax.jit(Mixed().init)(jax.random.key(0), x)
  stack = ql.calibrate(
    Mixed(), variables, [x], tiny.on("stack/block/in", scale)
  )
  assert stack.learned["stack/block/in"].shape == (3,)
  with pytest.raises(ValueError, match=r"/i/in: what .* learns"):
    ql.calibrate(Mixed(), variables, [x], tiny.on("/i/in", scale))


class Branching(nn.Module):
  """One of two layers, chosen by the data."""

  def setup(self):
    self.left, self.right = nn.Dense(2), nn.Dense(2)

  def __call__(self, x):
    if self.is_initializing():
      return self.left(x) + self.right(x)
    return nn.cond(
      jnp.sum(x) > 0,
      lambda model, x: model.left(x),
      lambda model, x: model.right(x),
      self,
      x,
    )


class Late(nn.Module):
  """A layer that only long batches reach."""

  @nn.compact
  def __call__(self, x):
    y = nn.Dense(2, name="tail")(x)
    return nn.Dense(2, name="head")(x) + y if len(x) > 3 else y


def test_a_site_that_never_runs_is_named():
  x = jnp.ones((2, 3))
  variables = jax.jit(Branching().init)(jax.random.key(0), x)
  acts = tiny.on("/in")
  with pytest.raises(ValueError, match="right/in: did not run in any of 2"):
    ql.calibrate(Branching(), variables, [x, 2 * x], acts)
  state = ql.calibrate(Branching(), variables, [x, -2 * x], acts)
  ranges = [
    tiny.largest(state.stats[f"{n}/in"]).item() for n in ("left", "right")
  ]
  assert ranges == [1, 2]
  y, _ = ql.apply(Branching(), variables, -x, acts=acts, state=state)
  assert y.shape == (2, 2)


def test_a_site_may_appear_in_a_later_batch():
  x = jnp.ones((4, 3))
  variables = jax.jit(Late().init)(jax.random.key(0), x)
  acts = tiny.on("/in")
  state = ql.calibrate(Late(), variables, [x[:2], 3 * x, x[:2]], acts)
  assert tiny.largest(state.stats["head/in"]) == 3
  short = ql.calibrate(Late(), variables, [x[:2]], acts)
  with pytest.raises(ValueError, match=r"head/in: .*ql\.calibrate"):
    ql.apply(Late(), variables, x, acts=acts, state=short)


def test_bad_input():
  model, variables = _mlp()
  with pytest.raises(ValueError, match="at least one batch"):
    ql.calibrate(model, variables, [], ACTS)
  with pytest.raises(ValueError, match=r"matches \['conv'\]; .*'Dense_0/in'"):
    ql.calibrate(model, variables, BATCHES, tiny.on("conv"))
  with pytest.raises(ValueError, match="in: matches no rule"):
    ql.calibrate(
      model, variables, BATCHES, ql.by_path([("dense", tiny.running_max)])
    )
  for bad in (jnp.nan, jnp.inf):
    batches = [BATCHES[0], BATCHES[1].at[0, 0].set(bad)]
    with pytest.raises(ValueError, match=r"^in: its statistics are not finite"):
      ql.calibrate(model, variables, batches, ACTS)
