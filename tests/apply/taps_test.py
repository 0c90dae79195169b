import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from tests import tiny_models as tiny

X = tiny.normal(4, 6)
DYNAMIC = ql.chain(ql.fit(ql.absmax, tiny.INT8, ql.per_tensor), ql.nearest())


class Super(nn.Dense):
  """A call by `super()` is not another one."""

  def __call__(self, x):
    return super().__call__(x)


def _init(model, *args):
  return jax.jit(lambda key: model.init({"params": key}, *args))(
    jax.random.key(0)
  )


def _shapes(model, *args):
  return jax.eval_shape(lambda: _init(model, *args))


def _apply(model, acts, *args, state=None, **kwargs):
  """`ql.apply`, as one program."""
  run = functools.partial(ql.apply, model, acts=acts, **kwargs)
  return jax.jit(lambda args, state: run(*args, state=state))(args, state)


def _mlp():
  model = tiny.Mlp()
  return model, _init(model, X)


@pytest.mark.parametrize(
  ("model", "x", "expected"),
  [
    (
      tiny.Mlp(),
      X,
      "in Dense_0/in Dense_0/out Dense_1/in Dense_1/out out",
    ),
    (
      tiny.ConvNet(),
      tiny.normal(2, 4, 4, 1),
      "in conv/in conv/out norm/in norm/out head/in head/out out",
    ),
    (
      tiny.Stack(),
      tiny.normal(2, 4),
      "in block/in block/Dense_0/in block/Dense_0/out block/out out",
    ),
    (Super(2), X, "in out"),
  ],
)
def test_sites_are_named_by_module_in_order_of_execution(model, x, expected):
  found = ql.sites(model, _shapes(model, x), x)
  assert list(found) == expected.split()
  assert found["in"].shape == x.shape


def test_integers_are_no_site_but_what_is_looked_up_is():
  model, tokens = tiny.Transformer(), jnp.zeros((1, 5), jnp.int32)
  found = list(ql.sites(model, _shapes(model, tokens), tokens))
  assert found[:3] == ["Embed_0/out", "LayerNorm_0/in", "LayerNorm_0/out"]
  assert "MultiHeadDotProductAttention_1/out/in" in found
  assert len(found) == 2 + 2 * (2 + 2 + 4 * 2)


def test_sites_computes_nothing_and_takes_shapes_and_flags():
  model, x = tiny.ConvNet(), tiny.normal(2, 4, 4, 1)
  shapes = _shapes(model, x), jax.eval_shape(lambda: x)
  found = ql.sites(model, *shapes, train=True, mutable=["batch_stats"])
  assert found["conv/out"] == jax.ShapeDtypeStruct((2, 4, 4, 4), jnp.float32)

  class Flagged(nn.Module):
    @nn.compact
    def __call__(self, flag, x):
      return nn.Dense(2)(x) if flag else x

  variables = _shapes(Flagged(), True, X)
  assert "Dense_0/in" in ql.sites(Flagged(), variables, True, X)


def test_first_float_arrays_of_arguments_and_tuples_are_sites():
  cell = nn.LSTMCell(4)
  carry = cell.initialize_carry(jax.random.key(0), (2, 3))
  x = tiny.normal(2, 3)
  variables = _init(cell, carry, x)
  found = ql.sites(cell, variables, carry, x)
  assert (found["in"].shape, found["out"].shape) == ((2, 3), (2, 4))
  (_, y), _ = _apply(cell, tiny.on("^out$", DYNAMIC), variables, carry, x)

  @jax.jit
  def by_hand(variables):
    _, plain = cell.apply(variables, carry, x)
    return tiny.fake_quantized(plain, jnp.max(jnp.abs(plain)))

  np.testing.assert_array_equal(y, by_hand(variables))


def test_kept_sites_cost_nothing():
  model, variables = _mlp()

  def kept(x):
    return ql.apply(model, variables, x, acts=ql.keep())[0]

  plain = jax.make_jaxpr(lambda x: model.apply(variables, x))(X)
  assert str(jax.make_jaxpr(kept)(X)) == str(plain)


def _by_hand(variables, x, ranges=(None, None)):
  """`Mlp` with its layers' inputs quantized, static where a range is given."""
  weights = ql.dequantize(variables["params"])
  for i, range_ in enumerate(ranges):
    range_ = jnp.max(jnp.abs(x)) if range_ is None else range_
    layer = weights[f"Dense_{i}"]
    x = tiny.fake_quantized(x, range_) @ layer["kernel"]
    x = x + layer["bias"][None]
    x = x if i else nn.relu(x)
  return x


def _packed(variables, bits=8):
  plan = ql.by_path([("bias|scale", ql.keep()), ("", ql.rtn(bits))])
  return {**variables, "params": ql.quantize(plan, variables["params"])}


@pytest.mark.parametrize(
  "bits", [None, 8, pytest.param(4, marks=pytest.mark.study)]
)
@pytest.mark.parametrize("jit", [False, True])
def test_static_and_dynamic_equal_the_formula_to_the_bit(bits, jit):
  model, variables = _mlp()
  variables = _packed(variables, bits) if bits else variables
  static = tiny.on("dense_./in$")
  state = ql.calibrate(model, variables, [X / 2], static)
  ranges = [tiny.largest(stats) for stats in state.stats.values()]

  def run(variables, x, state):
    y, _ = ql.apply(model, variables, x, acts=static, state=state)
    dynamic, _ = ql.apply(
      model, variables, x, acts=tiny.on("dense_./in$", DYNAMIC)
    )
    return y, dynamic

  # A compiled division by 127 is another one: both are compiled, or neither.
  run, by_hand = (jax.jit(f) if jit else f for f in (run, _by_hand))
  y, dynamic = run(variables, X, state)
  np.testing.assert_array_equal(y, by_hand(variables, X, ranges))
  np.testing.assert_array_equal(dynamic, by_hand(variables, X))
  assert not jnp.array_equal(y, dynamic)


def test_the_state_is_used():
  model, variables = _mlp()
  acts = tiny.on("Dense_1/in$")
  state = ql.calibrate(model, variables, [X], acts)

  def run(state):
    return ql.apply(model, variables, X, acts=acts, state=state)

  y, stats = run(state)
  twice, _ = run(jax.tree.map(lambda a: 2 * a, state))
  assert not jnp.array_equal(y, twice)
  assert jax.tree.structure(stats) == jax.tree.structure(state.stats)
  jax.tree.map(np.testing.assert_array_equal, stats, state.stats)
  wider, _ = run(ql.State(state.learned, jax.tree.map(jnp.zeros_like, stats)))
  np.testing.assert_array_equal(wider, y)  # nothing seen: the tensor's own


def test_static_does_not_depend_on_the_batch_and_dynamic_does():
  model, variables = _mlp()
  static = tiny.on("/in$")
  state = ql.calibrate(model, variables, [X], static)
  small, larger = (jnp.concatenate([X, factor * X]) for factor in (1, 10))
  alone, _ = _apply(model, static, variables, small, state=state)
  among, stats = _apply(model, static, variables, larger, state=state)
  np.testing.assert_array_equal(alone[:4], among[:4])
  seen = tiny.largest(stats["Dense_0/in"])
  assert seen == jnp.max(jnp.abs(larger))  # the next state has seen it

  dynamic = tiny.on("/in$", DYNAMIC)
  alone, _ = _apply(model, dynamic, variables, small)
  among, stats = _apply(model, dynamic, variables, larger)
  assert stats == {}
  assert jnp.max(jnp.abs(alone[:4] - among[:4])) > 1e-3


def test_gradients_pass_straight_through():
  model, variables = _mlp()
  acts = tiny.on("dense_1/in")
  state = ql.calibrate(model, variables, [3 * X], acts)
  range_ = tiny.largest(state.stats["Dense_1/in"])

  @jax.grad
  def found(params):
    y, _ = ql.apply(model, {"params": params}, X, acts=acts, state=state)
    return jnp.sum(y**2)

  @jax.grad
  def expected(params):
    first, last = params["Dense_0"], params["Dense_1"]
    x = nn.relu(X @ first["kernel"] + first["bias"][None])
    error = tiny.fake_quantized(x, range_) - x
    x += jax.lax.stop_gradient(error)
    return jnp.sum((x @ last["kernel"] + last["bias"][None]) ** 2)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    jax.jit(found)(variables["params"]),
    jax.jit(expected)(variables["params"]),
  )


def test_what_is_learned_gets_gradients():
  def apply(q, state, key=None):
    q = ql.lift(q)
    return ql.lift(q.dequantize() * state.learned), ()

  scaled = ql.Quantizer(lambda q: ql.State(jnp.max(q.codes)), apply)
  lifting = ql.Quantizer(lambda x: scaled.init(ql.lift(x)), apply)
  model, variables = _mlp()
  acts = tiny.on("^in$", lifting)
  state = ql.calibrate(model, variables, [X, 9 * X], acts)
  assert state.learned["in"] == jnp.max(X)  # of the first batch

  def loss(learned):
    state = ql.State(learned, {"in": ()})
    return jnp.sum(ql.apply(model, variables, X, acts=acts, state=state)[0])

  assert jnp.abs(jax.jit(jax.grad(loss))(state.learned)["in"]) > 1e-3


class Wrapping(nn.Module):
  """A layer behind two, each under a lifted transform or none."""

  wrap: Any

  @nn.compact
  def __call__(self, x):
    return self.wrap(nn.Dense)(3, name="b")(self.wrap(tiny.Mlp)(name="a")(x))


@pytest.mark.parametrize("wrap", [nn.remat, nn.jit])
def test_modules_in_remat_and_jit(wrap):
  wrapped, plain = Wrapping(wrap), Wrapping(lambda module: module)
  variables = _packed(_init(plain, X))
  acts = tiny.on("dense_./in$|b/in$")
  state, expected = (
    ql.calibrate(model, variables, [X], acts) for model in (wrapped, plain)
  )
  assert list(state.stats) == ["a/Dense_0/in", "a/Dense_1/in", "b/in"]
  jax.tree.map(np.testing.assert_allclose, state, expected)
  half = jax.tree.map(lambda a: a / 2, state)
  outs = [
    _apply(model, acts, variables, X, state=half) for model in (wrapped, plain)
  ]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *outs)


def test_another_plan_is_not_hidden_by_what_nn_jit_has_compiled():
  model = nn.jit(nn.Dense)(3)
  variables = _init(model, X)
  plain = ql.apply(model, variables, X)
  coarse = ql.chain(ql.fit(ql.absmax, ql.INT2, ql.per_tensor), ql.nearest())
  outs = [
    ql.apply(model, variables, X, acts=acts, mutable=mutable)[0]
    for acts in (coarse, DYNAMIC, tiny.on("in$", coarse), coarse)
    for mutable in (False, True, nn.DenyList("params"))
  ]
  outs = [out[0] if isinstance(out, tuple) else out for out in outs]
  for i in range(0, 12, 3):
    np.testing.assert_array_equal(outs[i], outs[i + 1])
    np.testing.assert_array_equal(outs[i], outs[i + 2])
  values = [np.asarray(v) for v in (plain, *outs[:9:3])]
  for i in range(4):
    assert not any(np.array_equal(values[i], v) for v in values[:i])
  np.testing.assert_array_equal(outs[0], outs[9])
  # A rule that places nothing is told from one that is behind compiled code.
  ql.apply(model, variables, X, acts=tiny.on("in$", coarse))
  with pytest.raises(ValueError, match=r"no site of the model matches \['z'\]"):
    ql.apply(model, variables, X, acts=tiny.on("z", coarse))


def _unrolled(stack):
  """The layers of `Stack` one by one."""
  leaves, tree = jax.tree.flatten(stack["params"]["block"])
  layers = zip(*leaves, strict=True)
  return [{"params": jax.tree.unflatten(tree, layer)} for layer in layers]


def test_layers_of_a_scan_have_a_state_each():
  model, x = tiny.Stack(), tiny.normal(5, 4)
  variables = _init(model, x)
  acts = tiny.on("block/in|dense_0/in")
  state = ql.calibrate(model, variables, [x], acts)
  y, stats = jax.jit(
    lambda x: ql.apply(model, variables, x, acts=acts, state=state)
  )(x)
  exact, hidden = x, x
  for i, layer in enumerate(_unrolled(variables)):
    range_ = jnp.max(jnp.abs(exact))
    for site in ("block/in", "block/Dense_0/in"):
      found = tiny.largest(state.stats[site])
      assert found.shape == (3,)
      np.testing.assert_allclose(found[i], range_, rtol=1e-6)
    exact, _ = tiny.Block().apply(layer, exact)
    hidden = tiny.fake_quantized(hidden, range_)
    hidden, _ = tiny.Block().apply(layer, hidden)
  np.testing.assert_allclose(y, hidden, rtol=1e-5, atol=1e-6)
  assert jax.tree.structure(stats) == jax.tree.structure(state.stats)


def test_packed_stacks_and_taps():
  model, x = tiny.Stack(), tiny.normal(5, 4)
  variables = _init(model, x)
  plan = ql.by_path([("bias", ql.keep()), ("", ql.stacked(ql.rtn(8)))])
  packed = {"params": ql.quantize(plan, variables["params"])}
  dense = ql.dequantize(packed)
  acts = tiny.on("in$")
  state = ql.calibrate(model, packed, [x], acts)
  y, _ = _apply(model, acts, packed, x, state=state)
  expected, _ = _apply(model, acts, dense, x, state=state)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_state_that_is_not_lifted_is_refused_and_none_is_needed():
  model, x = tiny.Stack(lifted=False), tiny.normal(5, 4)
  variables = _init(model, x)
  y, _ = ql.apply(model, variables, x, acts=tiny.on("dense_0/in", DYNAMIC))
  assert not jnp.array_equal(y, model.apply(variables, x))
  acts = tiny.on("dense_0/in")
  message = r"block/Dense_0/in: .*variable_axes=\{'acts': 0\}"
  with pytest.raises(ValueError, match=message):
    ql.calibrate(model, variables, [x], acts)
  state = ql.State(
    {"block/Dense_0/in": ((), ())}, {"block/Dense_0/in": (1, ())}
  )
  with pytest.raises(ValueError, match=message):
    ql.apply(model, variables, x, acts=acts, state=state)


def test_steps_of_a_recurrence_share_a_state():
  model = nn.RNN(nn.SimpleCell(4), variable_carry="acts")
  x = tiny.normal(2, 5, 3, seed=4)
  variables = _init(model, x)
  acts = tiny.on("cell/[ih]/in$")
  state = ql.calibrate(model, variables, [x, 2 * x], acts)
  np.testing.assert_array_equal(
    tiny.largest(state.stats["cell/i/in"]), 2 * jnp.max(jnp.abs(x))
  )
  apply = jax.jit(model.apply)
  hidden = [np.asarray(apply(variables, v))[:, :-1] for v in (x, 2 * x)]
  np.testing.assert_allclose(
    tiny.largest(state.stats["cell/h/in"]), np.max(np.abs(hidden)), rtol=1e-6
  )
  y, _ = _apply(model, acts, variables, x, state=state)
  cell, h = ql.dequantize(variables["params"]["cell"]), jnp.zeros((2, 4))
  ranges = [tiny.largest(state.stats[f"cell/{name}/in"]) for name in "ih"]

  @jax.jit
  def step(h, x):
    i, h = (
      tiny.fake_quantized(v, range_)
      for v, range_ in zip((x, h), ranges, strict=True)
    )
    bias = cell["i"]["bias"][None]
    return jnp.tanh(i @ cell["i"]["kernel"] + bias + h @ cell["h"]["kernel"])

  for t in range(5):
    h = step(h, x[:, t])
    np.testing.assert_allclose(y[:, t], h, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="variable_carry='acts'"):
    ql.calibrate(nn.RNN(nn.SimpleCell(4)), variables, [x], acts)


def test_examples_of_vmaps():
  model = nn.vmap(
    nn.Dense,
    variable_axes={"params": 0, "acts": 0},
    split_rngs={"params": True},
  )(3)
  variables = _init(model, X[:, None])
  state = ql.calibrate(model, variables, [X[:, None]], tiny.on("in$"))
  np.testing.assert_array_equal(
    tiny.largest(state.stats["in"]), jnp.max(jnp.abs(X), axis=1)
  )
  model, variables = _mlp()
  acts = tiny.on("in$", DYNAMIC)

  @jax.jit
  def run(x):
    return ql.apply(model, variables, x, acts=acts)[0]

  for y, x in zip(jax.jit(jax.vmap(run))(X), X, strict=True):
    np.testing.assert_allclose(y, run(x), rtol=1e-5, atol=1e-6)


def test_a_module_that_is_called_twice_has_one_grid():
  class Twice(nn.Module):
    def setup(self):
      self.layer = nn.Dense(6)

    def __call__(self, x):
      return self.layer(10 * self.layer(x))

  model = Twice()
  variables = _init(model, X)
  acts = tiny.on("layer/in")
  state = ql.calibrate(model, variables, [X], acts)
  assert list(state.stats) == ["layer/in"]
  second = 10 * nn.Dense(6).apply({"params": variables["params"]["layer"]}, X)
  largest = jnp.max(jnp.abs(second))
  np.testing.assert_array_equal(tiny.largest(state.stats["layer/in"]), largest)

  narrow = ql.State(state.learned, jax.tree.map(lambda a: a / 4, state.stats))
  y, stats = ql.apply(model, variables, X, acts=acts, state=narrow)
  x = X
  for factor in (1, 10):
    x = tiny.fake_quantized(factor * x, largest / 4)
    x = nn.Dense(6).apply({"params": variables["params"]["layer"]}, x)
  np.testing.assert_array_equal(y, x)
  assert tiny.largest(stats["layer/in"]) > largest / 2  # both were seen


@pytest.mark.parametrize("wrapped", [False, True])
def test_modules_with_packed_parameters_of_their_own(wrapped):
  model = tiny.Wrapped() if wrapped else tiny.Custom()
  path = "custom/" if wrapped else ""
  x = tiny.normal(16, 4)
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  variables = jax.jit(model.init)(keys, x)
  variables = {c: variables[c] for c in ("params", "batch_stats")}
  packed = _packed(variables)
  dense = ql.dequantize(packed)
  found = list(ql.sites(model, packed, x, rngs=keys, mutable=True))
  assert found == list(ql.sites(model, dense, x, rngs=keys, mutable=True))
  assert f"{path}dense/in" in found
  acts = tiny.on("in$")
  more = {"mutable": ["batch_stats", "intermediates"], "rngs": keys}
  states = [ql.calibrate(model, v, [x], acts, **more) for v in (packed, dense)]
  assert f"{path}norm/in" in states[0].stats
  runs = [
    _apply(model, acts, v, x, state=states[0], **more) for v in (packed, dense)
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    (states[0].stats, runs[0]),
    (states[1].stats, runs[1]),
  )
  (y, changed), _ = runs[0]
  assert set(changed) == {"batch_stats", "intermediates"}
  assert 0 < jnp.mean(y == 0) < 1  # dropped out


def test_collections_that_the_user_asks_for_are_as_in_flax():
  model, x = tiny.ConvNet(), tiny.normal(2, 4, 4, 1)
  variables = _packed(_init(model, x))
  acts = tiny.on("head/in")
  state = ql.calibrate(model, variables, [x], acts)
  for mutable in (
    ["batch_stats"],
    "batch_stats",
    True,
    [],
    nn.DenyList("params"),
  ):
    (y, changed), stats = (
      ql.apply(
        model, variables, x, acts=acts, state=state, train=True, mutable=mutable
      )
      if mutable != []
      else ql.apply(
        model, variables, x, acts=acts, state=state, mutable=mutable
      )
    )
    assert "acts" not in changed
    assert ("batch_stats" in changed) == (mutable != [])
    assert list(stats) == ["head/in"]
  assert y.shape == (2, 3)


def test_bfloat16_stays():
  model = nn.Dense(3, dtype=jnp.bfloat16)
  x = X.astype(jnp.bfloat16)
  variables = _init(model, x)
  acts = tiny.on("in$|out$")
  state = ql.calibrate(model, variables, [x], acts)
  y, _ = _apply(model, acts, variables, x, state=state)
  assert y.dtype == jnp.bfloat16
  assert len(jnp.unique(y)) > 4


def test_chunks_of_channels_have_ranges_of_their_own():
  def thirds(shape):
    return (*(1,) * (len(shape) - 1), 3)

  x = X * jnp.array([1, 1, 100, 100, 0.01, 0.01])[None]
  parts, whole = (
    ql.rtn(8, granularity=cells) for cells in (thirds, ql.per_tensor)
  )
  model, variables = _mlp()
  (y, _), (coarse, _) = (
    _apply(model, tiny.on("dense_0/in", quantizer), variables, x)
    for quantizer in (parts, whole)
  )
  chunks = [
    ql.quantize(whole, chunk).dequantize() for chunk in jnp.split(x, 3, axis=1)
  ]
  expected = model.apply(variables, jnp.concatenate(chunks, axis=1))
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  assert not jnp.allclose(y, coarse, rtol=1e-3)


def test_random_stages_take_keys_of_their_stream():
  model, variables = _mlp()
  random = ql.chain(ql.fit(ql.absmax, ql.INT2, ql.per_tensor), ql.stochastic())
  acts = tiny.on("in$", random)

  def run(seed):
    rngs = {"acts": jax.random.key(seed)}
    return ql.apply(model, variables, X, acts=acts, rngs=rngs)[0]

  np.testing.assert_array_equal(run(0), run(0))
  assert not jnp.array_equal(run(0), run(1))
  with pytest.raises(ValueError, match=r"in: .*key"):
    ql.apply(model, variables, X, acts=acts)


def test_ranges_reduce_over_all_devices():
  model, variables = _mlp()
  acts = tiny.on("in$")
  x = tiny.normal(16, 6)
  mesh = jax.make_mesh((8,), ("data",))
  parted = jax.NamedSharding(mesh, jax.P("data"))
  variables, sharded = (
    jax.device_put(variables, jax.NamedSharding(mesh, jax.P())),
    jax.device_put(x, parted),
  )
  one = ql.calibrate(model, variables, [x], acts)
  all_ = ql.calibrate(model, variables, [sharded], acts)
  assert tiny.largest(all_.stats["in"]) == jnp.max(jnp.abs(x))
  jax.tree.map(np.testing.assert_array_equal, one.stats, all_.stats)
  for quantizer, state in ((tiny.running_max, all_), (DYNAMIC, None)):
    acts = tiny.on("in$", quantizer)
    run = jax.jit(functools.partial(ql.apply, model, acts=acts))
    found = [run(variables, v, state=state)[0] for v in (x, sharded)]
    np.testing.assert_array_equal(*found)


def test_bad_input():
  model, variables = _mlp()
  acts = tiny.on("dense_1/in")
  with pytest.raises(ValueError, match=r"Dense_1/in: .*ql.calibrate"):
    ql.apply(model, variables, X, acts=acts)
  state = ql.calibrate(model, variables, [X], acts)
  with pytest.raises(ValueError, match=r"Dense_0/in: .*ql.calibrate"):
    ql.apply(model, variables, X, acts=tiny.on("/in"), state=state)
  with pytest.raises(ValueError, match="give acts"):
    ql.apply(model, variables, X, state=state)
  with pytest.raises(ValueError, match=r"^in: matches no rule"):
    ql.apply(model, variables, X, acts=ql.by_path([("dense", DYNAMIC)]))
  with pytest.raises(ValueError, match=r"matches \['conv'\]; .*'Dense_1/in'"):
    ql.apply(model, variables, X, acts=tiny.on("conv", DYNAMIC))
  with pytest.raises(ValueError, match="collection 'acts'"):
    ql.apply(model, {**variables, "acts": {}}, X, acts=DYNAMIC)
  blocks = ql.rtn(8, granularity=ql.per_block(-1, 4))
  with pytest.raises(ValueError, match=r"^in: per_block"):
    ql.apply(model, variables, X, acts=blocks)
