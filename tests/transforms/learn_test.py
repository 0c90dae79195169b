"""Golden vectors and gradient tables of arXiv 2004.09576 and 2404.16898."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import quantlab as ql
from quantlab.core import base, parameterization
from tests import draws

X = jnp.array([-1.0, -0.2, 0.26, 0.9, 2.0])


def _state(kind, spec, **values):
  arrays = {name: jnp.full((1,), value) for name, value in values.items()}
  return ql.State(learned=ql.Learned(arrays, kind.name, spec))


def _gradients(kind, spec, x=X, **values):
  """The result, and its derivative by each number for each element."""
  q = ql.chain(ql.learned(kind, spec, ql.per_tensor), ql.nearest())
  state = _state(kind, spec, **values)

  def out(learned, x):
    values = q.apply(x, ql.State((learned, ()), ((), ())))[0].dequantize()
    return values, values

  jacobian = jax.jit(jax.jacobian(out, (0, 1), has_aux=True))
  (numbers, by_x), values = jacobian(state.learned, x)
  found = {name: np.asarray(a)[:, 0] for name, a in numbers.values.items()}
  return np.asarray(values), found, np.diagonal(by_x)


def test_lsq_plus_golden_vector():
  spec = base.IntSpec(2, signed=False)
  out, found, dx = _gradients(ql.scale_offset, spec, scale=0.5, offset=-0.25)
  close = {"atol": 1e-6}
  np.testing.assert_allclose(out, [-0.25, -0.25, 0.25, 0.75, 1.25], **close)
  scale, offset = [0, -0.1, -0.02, -0.3, 3], [1, 0, 0, 0, 1]
  np.testing.assert_allclose(found["scale"], scale, **close)
  np.testing.assert_allclose(found["offset"], offset, **close)
  np.testing.assert_allclose(dx, [0, 1, 1, 1, 0], **close)


ROUNDED = base.IntSpec(2, signed=False, exact_zero=True)
# x = .9 is on a tie of the rounding, and left out.
FEW = X[:3]


def test_min_max_golden_vector():
  out, found, _ = _gradients(ql.min_max, ROUNDED, FEW, lo=-0.5, hi=1.3)
  np.testing.assert_allclose(out, [-0.6, 0, 0], atol=1e-6)
  np.testing.assert_allclose(found["lo"], [19 / 18, -1 / 9, 13 / 90], rtol=1e-5)
  np.testing.assert_allclose(found["hi"], [-1 / 18, 1 / 9, -13 / 90], rtol=1e-5)


def test_scale_zero_golden_vector():
  out, found, _ = _gradients(ql.scale_zero, ROUNDED, FEW, scale=0.6, zero=1.0)
  np.testing.assert_allclose(out, [-0.6, 0, 0], atol=1e-6)
  np.testing.assert_allclose(found["scale"], [-1, 1 / 3, -13 / 30], rtol=1e-5)
  np.testing.assert_allclose(found["zero"], [-0.6, 0, 0], rtol=1e-5)


def test_multipliers_golden_vector():
  # The smallest and the largest element are -1 and 2.
  out, found, _ = _gradients(ql.beta_gamma, ROUNDED, beta=0.5, gamma=0.65)
  np.testing.assert_allclose(out[:3], [-0.6, 0, 0], atol=1e-6)
  beta, gamma = [-19 / 18, 1 / 9, -13 / 90], [-1 / 9, 2 / 9, -13 / 45]
  np.testing.assert_allclose(found["beta"][:3], beta, rtol=1e-5)
  np.testing.assert_allclose(found["gamma"][:3], gamma, rtol=1e-5)


def test_sigmoid_is_a_factor_of_the_gradient():
  logits = {"beta": 0.1, "gamma": -0.2}
  factors = {name: jax.nn.sigmoid(a) for name, a in logits.items()}
  out, found, _ = _gradients(ql.beta_gamma_sigmoid, ROUNDED, **logits)
  same, free, _ = _gradients(ql.beta_gamma, ROUNDED, **factors)
  np.testing.assert_allclose(out, same, rtol=1e-6)
  for name, f in factors.items():
    np.testing.assert_allclose(
      found[name], free[name] * f * (1 - f), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
  "bits", [2, pytest.param(4, marks=pytest.mark.study), 8]
)
def test_configurations_3_and_4_are_one_function(bits):
  x = 1.3 * draws.normal((500,)) + 0.2
  signed, unsigned = base.IntSpec(bits), base.IntSpec(bits, signed=False)
  half = 2 ** (bits - 1)
  a = _gradients(ql.scale_offset, signed, x, scale=0.21, offset=0.15)
  b = _gradients(
    ql.scale_offset, unsigned, x, scale=0.21, offset=0.15 - 0.21 * half
  )
  off = np.abs(a[0] - b[0]) > 1e-4  # on a tie
  assert np.mean(off) < 0.01
  scale = a[1]["scale"] + half * a[1]["offset"]
  np.testing.assert_allclose(
    np.where(off, 0, b[1]["scale"]),
    np.where(off, 0, scale),
    atol=1e-4 * half,
  )


@pytest.mark.parametrize("name", parameterization.PARAMETERIZATIONS)
def test_starts_at_the_estimated_range(name):
  kind = parameterization.PARAMETERIZATIONS[name]
  spec = base.IntSpec(4, signed=False, symmetric=False)
  if kind in (ql.step, ql.bound):
    spec = base.IntSpec(4, symmetric=True, narrow=kind is ql.step)
  x = draws.normal((64, 6))
  start = ql.absmax if spec.symmetric else ql.minmax
  learned = ql.chain(
    ql.learned(kind, spec, ql.per_channel(-1), start=start), ql.nearest()
  )
  fitted = ql.chain(ql.fit(start, spec, ql.per_channel(-1)), ql.nearest())
  out = ql.dequantize(ql.quantize(learned, x))
  expected = ql.dequantize(ql.quantize(fitted, x))
  if kind is ql.beta_gamma_sigmoid:  # at 0.982 of it
    assert jnp.mean((out - expected) ** 2) < 0.02 * jnp.mean(x**2)
  else:
    np.testing.assert_allclose(out, expected, atol=1e-5)


def _between(lo, hi, spec):
  scale = (hi - lo) / (spec.hi - spec.lo)
  return scale, spec.lo - lo / scale


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


# A kind and its numbers to step and zero point, as the papers write them.
SAID = {
  "scale_offset": lambda v, ends, spec: (
    v["scale"],
    -v["offset"] / v["scale"],
  ),
  "scale_zero": lambda v, ends, spec: (v["scale"], v["zero"]),
  "min_max": lambda v, ends, spec: _between(v["lo"], v["hi"], spec),
  "beta_gamma": lambda v, ends, spec: _between(
    v["beta"] * ends[0], v["gamma"] * ends[1], spec
  ),
  "beta_gamma_sigmoid": lambda v, ends, spec: _between(
    _sigmoid(v["beta"]) * ends[0], _sigmoid(v["gamma"]) * ends[1], spec
  ),
}


def _frozen(x, kind, spec, start, margin):
  """The quantizer without its jumps: what rounding adds stays as at `start`."""
  ends = x.min(), x.max()
  step, zero = SAID[kind](start, ends, spec)
  jump = np.round(zero) - zero if spec.exact_zero else 0.0
  code = x / step + zero + jump
  rest = np.round(code) - code
  below, above = code < spec.lo - margin, code > spec.hi + margin

  def values(numbers):
    step, zero = SAID[kind](numbers, ends, spec)
    zero = zero + jump
    inside = step * (x / step + zero + rest - zero)
    ends_ = step * (spec.lo - zero), step * (spec.hi - zero)
    return np.where(below, ends_[0], np.where(above, ends_[1], inside))

  return values


@pytest.mark.parametrize(
  ("kind", "start", "lo", "exact", "margin"),
  [
    ("scale_offset", {"scale": 0.21, "offset": -0.3}, 0, False, 0.0),
    ("scale_offset", {"scale": 0.21, "offset": 0.15}, -8, False, 0.0),
    ("scale_zero", {"scale": 0.21, "zero": 6.3}, 0, True, 0.5),
    ("min_max", {"lo": -1.33, "hi": 1.77}, 0, True, 0.5),
    ("min_max", {"lo": -1.33, "hi": 1.77}, 0, False, 0.5),
    ("beta_gamma", {"beta": 0.5, "gamma": 0.45}, 0, True, 0.5),
    ("beta_gamma_sigmoid", {"beta": 0.1, "gamma": -0.2}, 0, True, 0.5),
  ],
)
def test_gradients_are_those_of_frozen_residuals(
  kind, start, lo, exact, margin
):
  spec = base.IntSpec(4, signed=lo < 0, exact_zero=exact)
  rng = np.random.default_rng(0)
  x = 1.3 * rng.standard_normal(4000) + 0.2
  above = rng.standard_normal(4000)
  frozen = _frozen(x, kind, spec, start, margin)
  with jax.enable_x64(True):
    q = ql.chain(
      ql.learned(parameterization.PARAMETERIZATIONS[kind], spec, ql.per_tensor),
      ql.nearest(margin=margin),
    )

    def total(learned):
      out, _ = q.apply(jnp.asarray(x), ql.State((learned, ()), ((), ())))
      return jnp.mean(out.dequantize() * above)

    values = {name: jnp.array([value]) for name, value in start.items()}
    found = jax.jit(jax.grad(total))(ql.Learned(values, kind, spec)).values
    found = jax.tree.map(float, jax.tree.map(jnp.sum, found))
  for name in start:
    sides = [
      np.mean(frozen({**start, name: start[name] + h}) * above)
      for h in (1e-6, -1e-6)
    ]
    assert found[name] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize(
  ("bits", "step", "straight", "true"),
  [
    (2, 0.7, (-0.3443, -0.1804), (-0.3183, -0.1743)),
    (2, 1.1, (0.0130, -0.1127), (0.0424, -0.0962)),
    pytest.param(
      *(3, 0.4, (-0.4560, -0.0489), (-0.4425, -0.0481)),
      marks=pytest.mark.study,
    ),
    pytest.param(
      *(4, 0.2, (-0.8474, -0.0134), (-0.8408, -0.0133)),
      marks=pytest.mark.study,
    ),
    (8, 0.02, (-0.87979, 0.0009), (-0.87997, 0.0009)),
  ],
)
def test_straight_through_is_nearly_the_true_gradient(
  bits, step, straight, true
):
  # Of the mean squared error of a normal variable on a signed grid.
  at = (np.arange(200_000) + 0.5) / 200_000
  x = jnp.asarray(jax.scipy.special.ndtri(at), jnp.float32)
  spec = base.IntSpec(bits)
  q = ql.chain(ql.learned(ql.scale_offset, spec, ql.per_tensor), ql.nearest())

  @jax.jit
  def error(scale, offset):
    values = {"scale": scale[None], "offset": offset[None]}
    learned = ql.Learned(values, "scale_offset", spec)
    out, _ = q.apply(x, ql.State((learned, ()), ((), ())))
    return jnp.mean((out.dequantize() - x) ** 2)

  start = jnp.float32(step), jnp.float32(0.05)
  found = jax.grad(error, (0, 1))(*start)
  np.testing.assert_allclose(found, straight, rtol=5e-3, atol=1e-3)
  h = 0.02 * step  # wide: of fewer points than the card's two millions
  sides = [
    (error(step + h, 0.05), error(step - h, 0.05)),
    (error(step, 0.05 + h), error(step, 0.05 - h)),
  ]
  slopes = [float(a - b) / (2 * h) for a, b in sides]
  np.testing.assert_allclose(slopes, true, rtol=2e-2, atol=2e-3)
  if (bits, step) != (2, 1.1):  # near the optimum nothing can be said
    assert found[0] == pytest.approx(slopes[0], rel=0.1)


def test_gradient_scale_changes_the_gradient_alone():
  plain = ql.learned(ql.step, base.IntSpec(4, symmetric=True), ql.per_tensor)
  slow = ql.learned(
    ql.step,
    base.IntSpec(4, symmetric=True),
    ql.per_tensor,
    gradient_scale=lambda count, spec: (count * spec.hi) ** -0.5,
  )
  x = draws.normal((32, 4))
  state = jax.jit(plain.init)(x)

  def total(quantizer, learned):
    q, _ = ql.chain(quantizer, ql.nearest()).apply(
      x, ql.State((learned, ()), ((), ()))
    )
    return jnp.sum(q.dequantize() ** 3)

  (a, da), (b, db) = (
    jax.jit(jax.value_and_grad(functools.partial(total, q)))(state.learned)
    for q in (plain, slow)
  )
  assert a == b
  ratio = db.values["scale"] / da.values["scale"]
  np.testing.assert_allclose(ratio, (128 * 7) ** -0.5, rtol=1e-5)


INVALID = {
  "step": ({"scale": -1.0}, {"scale": parameterization.LEAST_STEP}),
  "scale_offset": (
    {"scale": -1.0, "offset": 3.0},
    {"scale": parameterization.LEAST_STEP, "offset": 3.0},
  ),
  "scale_zero": ({"scale": 0.5, "zero": -2.0}, {"scale": 0.5, "zero": 0.0}),
  "min_max": (
    {"lo": 0.5, "hi": -1.0},
    {"lo": 0.0, "hi": parameterization.LEAST_RANGE},
  ),
  "beta_gamma": ({"beta": -0.1, "gamma": 2.0}, {"beta": 0.0, "gamma": 2.0}),
}


@pytest.mark.parametrize("name", INVALID)
def test_projection(name):
  values, expected = INVALID[name]
  spec = base.IntSpec(4, signed=False)
  tree = {"w": ql.Learned(values, name, spec), "other": jnp.ones(3)}
  found = ql.project(tree)
  for key, value in expected.items():
    np.testing.assert_allclose(found["w"].values[key], value)
  assert found["other"] is tree["other"]


def test_a_step_is_refused_where_there_is_a_zero_point():
  with pytest.raises(ValueError, match="step has no zero point"):
    ql.learned(ql.step, ql.INT4, ql.per_tensor)


def test_a_margin_lets_gradients_of_rounded_ends_pass():
  spec = base.IntSpec(2, signed=False)
  # Codes -0.6, -0.4, 3.4 and 3.6 of 0 to 3.
  x = jnp.array([-0.6, -0.4, 1.2, 3.4, 3.6])
  for margin, expected in ((0.0, [0, 0, 1, 0, 0]), (0.5, [0, 1, 1, 1, 0])):
    q = ql.chain(
      ql.learned(ql.scale_offset, spec, ql.per_tensor),
      ql.nearest(margin=margin),
    )
    state = ql.State(
      (_state(ql.scale_offset, spec, scale=1.0, offset=0.0).learned, ()),
      ((), ()),
    )

    def total(x, q=q, state=state):
      out = q.apply(x, state)[0].dequantize()
      return jnp.sum(out), out

    slope, out = jax.jit(jax.grad(total, has_aux=True))(x)
    np.testing.assert_array_equal(out, [0, 0, 1, 3, 3])
    np.testing.assert_array_equal(slope, expected)


def test_integer_zero_points():
  x = draws.normal((64, 6)) + 0.3
  quantizer = ql.lsq_plus(4, granularity=ql.per_output, start=ql.minmax)
  state = jax.jit(quantizer.init)(x)
  exact = state._replace(learned=ql.integer_zero(state.learned))
  q = ql.quantize(quantizer, x, state=exact)
  zero = np.asarray(q.grid.zero, np.float32)
  np.testing.assert_array_equal(zero, np.round(zero))
  plain = ql.quantize(quantizer, x, state=state)
  np.testing.assert_allclose(q.grid.scale, plain.grid.scale)
  shift = np.abs(zero - np.asarray(plain.grid.zero))
  assert 0 < shift.max() <= 0.5
  # What is symmetric has no zero point to round.
  symmetric = jax.jit(ql.lsq(4, start=ql.three_sigma).init)(x)
  assert ql.integer_zero(symmetric.learned)[0] is symmetric.learned[0]


@pytest.mark.parametrize("name", parameterization.PARAMETERIZATIONS)
def test_a_trained_state_is_stored_as_it_was_seen(name):
  kind = parameterization.PARAMETERIZATIONS[name]
  spec = base.IntSpec(4, symmetric=name == "step", exact_zero=name != "step")
  quantizer = ql.chain(ql.learned(kind, spec, ql.per_output), ql.nearest())
  w = draws.normal((64, 6))
  state = quantizer.init(w)
  moved = jax.tree.map(lambda a: 1.1 * a, state.learned)
  state = state._replace(learned=ql.project(moved))
  seen, _ = jax.jit(quantizer.apply)(w, state)
  q = ql.quantize(quantizer, w, state=state)
  np.testing.assert_array_equal(q.dequantize(), seen.dequantize())
  assert q.codes.bits == 4
  again = ql.quantize(quantizer, w)
  assert np.any(np.asarray(again.dequantize()) != q.dequantize())
  plan = ql.by_path([("kernel", quantizer), ("", ql.keep())])
  tree = {"a": {"kernel": w, "bias": w[0]}}
  whole = plan.init(tree)
  of_plan = whole._replace(learned={**whole.learned, "a/kernel": state.learned})
  found = ql.quantize(plan, tree, state=of_plan)["a"]["kernel"]
  np.testing.assert_array_equal(found.dequantize(), seen.dequantize())
  with pytest.raises(ValueError, match=r"^a/bias: has no state; there are \["):
    ql.quantize(plan, tree, state=ql.State({"a/kernel": ()}, {"a/kernel": ()}))


# Our controlled experiments in the spirit of arXiv 2404.16898: Adam learns the
# range of a fixed tensor.


def _errors(x, start, rate, steps, after=lambda learned: learned):
  """The errors that a range makes while it is learned.

  Args:
    x: the tensor.
    start: a `Learned`.
    rate: of all numbers, or of each by name.
    steps: updates.
    after: what is done to the numbers after each.
  """
  kind = parameterization.PARAMETERIZATIONS[start.kind]
  grid = ql.learned(kind, start.spec, ql.per_tensor)
  quantizer = ql.chain(grid, ql.nearest(margin=0.5))
  rates = rate if isinstance(rate, dict) else dict.fromkeys(start.values, rate)
  adam = optax.adam(1.0)

  def error(learned):
    q, _ = quantizer.apply(x, ql.State((learned, ()), ((), ())))
    return jnp.mean((q.dequantize() - x) ** 2)

  def step(carry, _):
    learned, state = carry
    value, slope = jax.value_and_grad(error)(learned)
    move, state = adam.update(slope, state)
    moved = {
      k: v + rates[k] * move.values[k] for k, v in learned.values.items()
    }
    learned = after(dataclasses.replace(learned, values=moved))
    return (learned, state), value

  def run(start):
    return jax.lax.scan(step, (start, adam.init(start)), length=steps)[1]

  return np.asarray(jax.jit(run)(start))


def _least(x, spec, lows, highs):
  """The least error of all ranges between these ends."""
  quantizer = ql.chain(
    ql.learned(ql.min_max, spec, ql.per_tensor), ql.nearest(margin=0.5)
  )

  def error(ends):
    learned = _ends(*ends, spec)
    q, _ = quantizer.apply(x, ql.State((learned, ()), ((), ())))
    return jnp.mean((q.dequantize() - x) ** 2)

  pairs = np.stack(np.meshgrid(lows, highs), -1).reshape(-1, 2)
  errors = jax.jit(lambda p: jax.lax.map(error, p))(jnp.asarray(pairs, x.dtype))
  return float(jnp.min(errors))


def _ends(lo, hi, spec):
  values = {"lo": jnp.reshape(lo, (1,)), "hi": jnp.reshape(hi, (1,))}
  return ql.Learned(values, "min_max", spec)


def _unsigned(bits):
  return base.IntSpec(bits, signed=False, exact_zero=True)


def _floored(learned):
  """A step that falls below 0 stays just above it."""
  values = dict(learned.values)
  if "scale" in values:
    values["scale"] = jnp.maximum(values["scale"], 1e-9)
  return dataclasses.replace(learned, values=values)


def _drawn(seed, skipped=0):
  rng = np.random.default_rng(seed)
  rng.standard_normal(skipped)
  return jnp.asarray(rng.standard_normal(10_000), jnp.float32)


def _from_extremes(name, x, bits):
  kind = parameterization.PARAMETERIZATIONS[name]
  return ql.learned(kind, _unsigned(bits), ql.per_tensor).init(x).learned


@functools.cache
def _learning(name, bits, steps):
  """Errors at a rate of 0.01 over the best there is."""
  x = _drawn(3)
  parts = np.linspace(0.2, 1, 33)
  lo, hi = float(jnp.min(x)), float(jnp.max(x))
  best = _least(x, _unsigned(bits), lo * parts, hi * parts)
  start = _from_extremes(name, x, bits)
  return _errors(x, start, 1e-2, steps, _floored) / best


# Steps until the error is within 5 % of the best.
STEPS = {
  "scale_zero": (40, 60),
  "min_max": (152, 215),
  "beta_gamma": (39, 48),
  "beta_gamma_sigmoid": (241, 260),
}


@pytest.mark.parametrize("name", STEPS)
def test_how_fast_a_range_is_learned(name):
  first = int(np.argmax(_learning(name, 3, 400) <= 1.05))
  low, high = STEPS[name]
  assert 0.9 * low <= first <= 1.1 * high


@pytest.mark.parametrize("name", STEPS)
def test_many_bits_at_a_high_rate(name):
  errors = _learning(name, 10, 1500)
  if name == "scale_zero":  # the step falls to its floor
    assert errors.max() > 1e3
    assert errors[-1] > 10
  else:
    assert errors[-1] < 1.05


@pytest.mark.study
def test_a_range_that_has_to_travel():
  # From [-4, 4] to data around 2: a zero point moves by little at a time.
  x, spec = 2 + _drawn(4, 100_000), _unsigned(8)
  best = _least(x, spec, np.arange(-2, 2.05, 0.1), np.arange(2.5, 6.05, 0.1))
  step = 8 / (spec.hi - spec.lo)
  pair = {"scale": jnp.array([step]), "zero": jnp.array([4 / step])}
  pair = ql.Learned(pair, "scale_zero", spec)
  scaled = {"scale": 1e-2 / (spec.hi - spec.lo), "zero": 1e-2 / step}
  ends, plain, units = (
    _errors(x, start, rate, 4000, _floored)[-1] / best
    for start, rate in (
      (_ends(-4.0, 4.0, spec), 1e-2),
      (pair, 1e-2),
      (pair, scaled),
    )
  )
  assert ends == pytest.approx(1.0, rel=0.1)
  assert plain == pytest.approx(2.03, rel=0.1)
  assert ends < units < plain


@pytest.mark.parametrize("bits", [3, pytest.param(4, marks=pytest.mark.study)])
def test_the_zeros_of_a_relu_need_a_gate(bits):
  # The zero point of a free range flips, and all zeros move with it.
  x, spec = jnp.maximum(_drawn(5), 0), _unsigned(bits)
  best = _least(x, spec, [0.0], np.arange(0.5, 4.5, 0.01))

  def last(name, after):
    start = _from_extremes(name, x, bits)
    return _errors(x, start, 1e-2, 3000, after)[-200:].max() / best

  for name in ("min_max", "scale_zero"):
    assert last(name, _floored) > 5
    assert last(name, ql.project) < 1.05
  assert last("beta_gamma", _floored) < 1.05


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_are_those_of_pytorch(bits):
  torch = pytest.importorskip("torch")
  spec = base.IntSpec(bits, signed=False, exact_zero=True)
  rng = np.random.default_rng(bits)
  x = (1.3 * rng.standard_normal(4000) + 0.2).astype(np.float32)
  above = rng.standard_normal(4000).astype(np.float32)
  scale, zero = 5 / 2**bits, float(2**bits // 3)
  leaves = [torch.tensor(a, requires_grad=True) for a in (x, [scale], [zero])]
  theirs = torch._fake_quantize_learnable_per_tensor_affine(
    *leaves, spec.lo, spec.hi, 1.0
  )
  theirs.backward(torch.tensor(above))
  q = ql.chain(
    ql.learned(ql.scale_zero, spec, ql.per_tensor), ql.nearest(margin=0.5)
  )

  def total(x, learned):
    out = q.apply(x, ql.State((learned, ()), ((), ())))[0].dequantize()
    return jnp.sum(out * above), out

  values = {"scale": jnp.array([scale]), "zero": jnp.array([zero])}
  (by_x, learned), ours = jax.grad(total, (0, 1), has_aux=True)(
    jnp.asarray(x), ql.Learned(values, "scale_zero", spec)
  )
  np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-6)
  np.testing.assert_allclose(by_x, leaves[0].grad.numpy(), atol=1e-6)
  for name, leaf in zip(("scale", "zero"), leaves[1:], strict=True):
    found, expected = learned.values[name].item(), leaf.grad.item()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-3)
