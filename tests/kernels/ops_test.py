import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.kernels import ops

W = jax.random.normal(jax.random.key(0), (64, 24))
X = jax.random.normal(jax.random.key(1), (2, 3, 64))
FORMS = {
  "array": W,
  "affine": ql.quantize(ql.rtn(3), W),
  "codebook": ql.quantize(ql.lloyd(2), W),
  "labelled": ql.quantize(ql.icquant(ql.rtn(2)), W),
  "sum": ql.quantize(ql.easyquant(4, sigmas=2.0, steps=3), W),
}
ALL = pytest.mark.parametrize("form", FORMS)


def _dense(form):
  return ql.dequantize(FORMS[form])


@ALL
def test_dot(form):
  out = ops.dot(X, FORMS[form])
  np.testing.assert_allclose(out, X @ _dense(form), rtol=1e-5, atol=1e-5)


@ALL
def test_dot_has_a_gradient_for_the_activation(form):
  gradient = jax.grad(lambda x: jnp.sum(ops.dot(x, FORMS[form]) ** 2))(X)
  expected = jax.grad(lambda x: jnp.sum((x @ _dense(form)) ** 2))(X)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@ALL
def test_einsum_and_conv(form):
  out = ops.einsum("abk,kn->nab", X, FORMS[form])
  expected = jnp.einsum("abk,kn->nab", X, _dense(form))
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  args = ((1,), "VALID")
  out = ops.conv(
    X.reshape(2, 64, 3)[..., :1],
    W[:, None, :],
    *args,
    dimension_numbers=("NWC", "WIO", "NWC"),
  )
  assert out.shape == (2, 1, 24)


def test_dot_shows_both_shapes():
  with pytest.raises(ValueError, match=r"\(2, 3, 64\).*\(24, 64\)"):
    ops.dot(X, W.T)


def test_types_promote():
  assert ops.dot(X.astype(jnp.bfloat16), FORMS["affine"]).dtype == jnp.float32
  half = ql.quantize(ql.rtn(3), W.astype(jnp.bfloat16))
  assert ops.dot(X.astype(jnp.bfloat16), half).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  "quantizer",
  [
    ql.rtn(3, granularity=ql.per_channel(0)),
    ql.rtn(4, granularity=ql.per_block(1, 32)),
    ql.rtn(4, symmetric=True, granularity=ql.per_channel(0)),
    ql.lloyd(2, granularity=ql.per_channel(0)),
    ql.rtn(4),
    ql.easyquant(4, sigmas=2.0, granularity=ql.per_channel(0)),
  ],
)
def test_take_reads_rows(quantizer):
  table = ql.quantize(quantizer, jax.random.normal(jax.random.key(2), (10, 64)))
  index = jnp.array([[3, 9], [0, -1], [10, 4]])
  out = ops.take(table, index)
  expected = jnp.take(table.dequantize(), index, axis=0)
  np.testing.assert_array_equal(out, expected)
  assert jnp.isnan(out[2, 0]).all()


def test_take_does_not_decode_the_table():
  table = ql.quantize(
    ql.rtn(4, granularity=ql.per_channel(0)), jnp.ones((4096, 64))
  )
  compiled = jax.jit(ops.take).lower(table, jnp.array([1])).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 64
