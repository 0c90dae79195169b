"""Golden vectors and gradient tables of arXiv 2004.09576 and 2404.16898."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base
from quantlab.transforms import learn
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
    return q.apply(x, ql.State((learned, ()), ((), ())))[0].dequantize()

  numbers, by_x = jax.jacobian(out, (0, 1))(state.learned, x)
  found = {name: a[:, 0] for name, a in numbers.values.items()}
  return out(state.learned, x), found, jnp.diagonal(by_x)


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


def test_configurations_3_and_4_are_one_function():
  x = 1.3 * draws.normal((500,)) + 0.2
  for bits in (2, 4, 8):
    signed, unsigned = base.IntSpec(bits), base.IntSpec(bits, signed=False)
    half = 2 ** (bits - 1)
    a = _gradients(ql.scale_offset, signed, x, scale=0.21, offset=0.15)
    b = _gradients(
      ql.scale_offset, unsigned, x, scale=0.21, offset=0.15 - 0.21 * half
    )
    off = jnp.abs(a[0] - b[0]) > 1e-4  # on a tie
    assert jnp.mean(off) < 0.01
    scale = a[1]["scale"] + half * a[1]["offset"]
    np.testing.assert_allclose(
      jnp.where(off, 0, b[1]["scale"]),
      jnp.where(off, 0, scale),
      atol=1e-4 * half,
    )


@pytest.mark.parametrize("name", learn.PARAMETERIZATIONS)
def test_starts_at_the_estimated_range(name):
  kind = learn.PARAMETERIZATIONS[name]
  spec = base.IntSpec(4, signed=False, symmetric=False)
  if kind is ql.step:
    spec = base.IntSpec(4, symmetric=True)
  x = draws.normal((64, 6))
  start = ql.absmax if kind is ql.step else ql.minmax
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


def test_gradient_scale_changes_the_gradient_alone():
  plain = ql.learned(ql.step, base.IntSpec(4, symmetric=True), ql.per_tensor)
  slow = ql.learned(
    ql.step,
    base.IntSpec(4, symmetric=True),
    ql.per_tensor,
    gradient_scale=lambda count, spec: (count * spec.hi) ** -0.5,
  )
  x = draws.normal((32, 4))
  state = plain.init(x)

  def total(quantizer, learned):
    q, _ = ql.chain(quantizer, ql.nearest()).apply(
      x, ql.State((learned, ()), ((), ()))
    )
    return jnp.sum(q.dequantize() ** 3)

  (a, da), (b, db) = (
    jax.value_and_grad(lambda s, q=q: total(q, s))(state.learned)
    for q in (plain, slow)
  )
  assert a == b
  ratio = db.values["scale"] / da.values["scale"]
  np.testing.assert_allclose(ratio, (128 * 7) ** -0.5, rtol=1e-5)


INVALID = {
  "step": ({"scale": -1.0}, {"scale": learn.LEAST_STEP}),
  "scale_offset": (
    {"scale": -1.0, "offset": 3.0},
    {"scale": learn.LEAST_STEP, "offset": 3.0},
  ),
  "scale_zero": ({"scale": 0.5, "zero": -2.0}, {"scale": 0.5, "zero": 0.0}),
  "min_max": ({"lo": 0.5, "hi": -1.0}, {"lo": 0.0, "hi": learn.LEAST_RANGE}),
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
