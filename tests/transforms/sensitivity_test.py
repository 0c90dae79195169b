import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from tests import draws

W = {"a": {"kernel": draws.normal((256, 6))}}
MATTERS = jax.tree.map(
  lambda w: jax.random.exponential(jax.random.key(1), w.shape) ** 4, W
)


def _loss(params, batch):
  x, y = batch
  return jnp.mean((x @ params["w"] - y) ** 2)


def _batches(count):
  return [
    (draws.normal((4, 3), seed), jnp.ones((4, 2))) for seed in range(count)
  ]


def test_it_is_the_mean_of_squared_gradients():
  params = {"w": jnp.arange(6.0).reshape(3, 2)}
  found = ql.sensitivity(_loss, params, _batches(5))
  squares = []
  for x, y in _batches(5):
    gradient = 2 * x.T @ (x @ params["w"] - y) / y.size
    squares.append(gradient**2)
  np.testing.assert_allclose(found["w"], np.mean(squares, axis=0), rtol=1e-5)
  assert (found["w"] > 0).all()


def test_it_is_float32_whatever_the_parameters_are():
  params = {"w": jnp.ones((3, 2), jnp.bfloat16)}
  found = ql.sensitivity(_loss, params, iter(_batches(2)))
  assert found["w"].dtype == jnp.float32


def test_no_batches():
  with pytest.raises(ValueError, match="at least one batch, got none"):
    ql.sensitivity(_loss, {"w": jnp.ones((3, 2))}, [])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_names_leaf_and_batch(bad):
  batches = _batches(3)
  batches[1] = (batches[1][0].at[0, 0].set(bad), batches[1][1])
  with pytest.raises(ValueError, match=r"^w: batch 2 has a gradient of NaN"):
    ql.sensitivity(_loss, {"w": jnp.ones((3, 2))}, batches)


def _weighted(q):
  kernel = W["a"]["kernel"]
  error = (ql.dequantize(q)["a"]["kernel"] - kernel) ** 2
  return float(jnp.mean(MATTERS["a"]["kernel"] * error))


@pytest.mark.parametrize(
  "quantizer",
  [
    ql.lloyd(2),
    pytest.param(ql.icquant(ql.lloyd(2), ratio=0.05), marks=pytest.mark.study),
    ql.icquant(ql.rtn(2, estimator=ql.mse), ratio=0.05),
    pytest.param(ql.splitquant(ql.lloyd(2)), marks=pytest.mark.study),
    pytest.param(ql.clusterquant(ql.lloyd(2)), marks=pytest.mark.study),
    pytest.param(
      ql.exact_outliers(ql.lloyd(2), sigmas=2.0), marks=pytest.mark.study
    ),
    ql.rtn(2, exact_zero=True, estimator=ql.mse),
  ],
)
def test_errors_where_it_matters_are_smaller(quantizer):
  plain = ql.quantize(quantizer, W)
  told = ql.quantize(quantizer, W, sensitivity=MATTERS)
  assert ql.nbits(told) == ql.nbits(plain)
  assert _weighted(told) < _weighted(plain)
  other = jax.tree.map(jnp.ones_like, MATTERS)
  same = ql.quantize(quantizer, W, sensitivity=other)
  assert _weighted(same) == pytest.approx(_weighted(plain), rel=0.02)


def test_weights_of_zero_do_not_count():
  w = jnp.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.5, 3.0, 3.5, 6.0, 7.0])[:, None]
  q = ql.quantize(ql.lloyd(2), w, sensitivity=jnp.ones_like(w))
  assert sorted(q.grid.levels.ravel().tolist()) == [1.25, 3.25, 6, 7]


def test_where_nothing_counts_all_do():
  w = W["a"]["kernel"]
  q = ql.quantize(ql.lloyd(2), w, sensitivity=jnp.zeros_like(w))
  np.testing.assert_allclose(
    q.dequantize(), ql.quantize(ql.lloyd(2), w).dequantize(), rtol=1e-6
  )


BAD = {
  "shape": (jnp.ones(3), r"^a/kernel: sensitivity.shape=\(3,\) is not that of"),
  "negative": (-jnp.ones((256, 6)), "^a/kernel: .*negative somewhere"),
  "nan": (jnp.full((256, 6), jnp.nan), "^a/kernel: .*holds NaN or Inf"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_name_the_leaf(case):
  value, message = BAD[case]
  with pytest.raises(ValueError, match=message):
    ql.quantize(ql.lloyd(2), W, sensitivity={"a": {"kernel": value}})


def test_a_leaf_without_sensitivity_is_named():
  with pytest.raises(ValueError, match=r"^a/kernel: has no sensitivity; there"):
    ql.quantize(ql.lloyd(2), W, sensitivity={"b": jnp.ones(3)})
