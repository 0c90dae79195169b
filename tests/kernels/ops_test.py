import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.kernels import ops, products
from tests import draws
from tests.kernels import forms

W = draws.normal((64, 24))
X = draws.normal((2, 3, 64), 1)
FORMS = {
  "array": ql.keep(),
  "affine": ql.rtn(3),
  "codebook": ql.lloyd(2),
  "labelled": ql.icquant(ql.rtn(2)),
  "sum": ql.easyquant(4, sigmas=2.0, steps=3),
}
ALL = pytest.mark.parametrize("form", FORMS)


@functools.cache
def _stored(form):
  return ql.quantize(FORMS[form], W)


def _dense(form):
  return ql.dequantize(_stored(form))


@ALL
def test_dot(form):
  out = ops.dot(X, _stored(form))
  np.testing.assert_allclose(out, X @ _dense(form), rtol=1e-5, atol=1e-5)


@ALL
def test_dot_has_a_gradient_for_the_activation(form):
  gradient = jax.grad(lambda x: jnp.sum(ops.dot(x, _stored(form)) ** 2))(X)
  expected = jax.grad(lambda x: jnp.sum((x @ _dense(form)) ** 2))(X)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@ALL
def test_einsum(form):
  out = ops.einsum("abk,kn->nab", X, _stored(form))
  expected = jnp.einsum("abk,kn->nab", X, _dense(form))
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_dot_shows_both_shapes():
  with pytest.raises(ValueError, match=r"\(2, 3, 64\).*\(24, 64\)"):
    ops.dot(X, W.T)


def test_types_promote():
  assert ops.dot(X.astype(jnp.bfloat16), _stored("affine")).dtype == jnp.float32
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
  table = ql.quantize(quantizer, draws.normal((10, 64), 2))
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


KERNEL = draws.normal((3, 3, 8, 12), 3)
KERNEL = KERNEL.at[1, 1].multiply(9)
METHODS = {
  "affine": ql.rtn(3),
  "codebook": ql.lloyd(2),
  "labelled": ql.clusterquant(ql.rtn(2)),
  "gap_coded": ql.icquant(ql.rtn(2)),
  "sum": ql.splitquant(ql.rtn(2, exact_zero=True)),
  "exact": ql.easyquant(4, sigmas=2.0, steps=3),
  "window": ql.cfws(),
  "window_inside": ql.exact_outliers(ql.cfws()),
}
NHWC = ("NHWC", "HWIO", "NHWC")
IMAGE = draws.normal((2, 9, 8, 8), 4)


@functools.cache
def _kernel(form):
  return ql.quantize(METHODS[form], KERNEL)


def _conv(x, w, strides=(1, 1), padding="SAME", **kwargs):
  kwargs = {"dimension_numbers": NHWC, **kwargs}
  out = ops.conv(x, w, strides, padding, precision="highest", **kwargs)
  expected = jax.lax.conv_general_dilated(
    x, ql.dequantize(w), strides, padding, precision="highest", **kwargs
  )
  assert out.shape == expected.shape
  assert out.dtype == expected.dtype
  most = float(jnp.max(jnp.abs(expected)))
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6 * most)


@pytest.mark.parametrize("form", METHODS)
def test_conv_is_that_of_the_dense_kernel(form):
  _conv(IMAGE, _kernel(form), (2, 1))


def test_conv_of_arrays_windows_alone_and_many():
  q = _kernel("window")
  for w in (KERNEL, q.parts[0], ql.Sum((q, *q.parts, q.parts[0]))):
    _conv(IMAGE, w)


PADDINGS = ["SAME", "VALID", "SAME_LOWER", [(0, 0), (0, 0)], [(2, 0), (1, 3)]]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [None, (2, 1)])
def test_conv_with_a_window_of_the_kernel(padding, strides, dilation):
  _conv(IMAGE, _kernel("window"), strides, padding, rhs_dilation=dilation)


@pytest.mark.parametrize(
  ("dims", "size", "start"),
  [
    ((3, 3), (1, 1), (0, 2)),  # any tap
    ((5, 3), (2, 3), (1, 0)),  # any window
    ((4, 2), (3, 1), (1, 1)),  # of an even kernel
    ((3, 3), (3, 3), (0, 0)),  # all of it
  ],
)
@pytest.mark.parametrize(
  "padding", ["SAME", "VALID", [(1, 2), (0, 4)]], ids=str
)
def test_conv_with_any_window(dims, size, start, padding):
  part = draws.normal((*size, 8, 12), 5)
  window = ql.Window(ql.lift(part), (*start, 0, 0), (*dims, 8, 12))
  rest = ql.lift(draws.normal((*dims, 8, 12), 6))
  _conv(IMAGE, ql.Sum((rest, window)), (2, 1), padding, rhs_dilation=(1, 2))


@pytest.mark.parametrize("groups", [2, 8])
def test_conv_in_groups(groups):
  w = draws.normal((3, 3, 8 // groups, 16), 7)
  w = w.at[1, 1].multiply(9)
  q = ql.quantize(ql.cfws(), w)
  for strides in ((1, 1), (2, 2)):
    _conv(IMAGE, q, strides, feature_group_count=groups)


def test_conv_of_dilated_inputs():
  for padding in ([(1, 1), (1, 1)], [(0, 0), (2, 0)]):
    _conv(IMAGE, _kernel("window"), (1, 1), padding, lhs_dilation=(2, 1))


def test_conv_in_other_layouts_and_ranks():
  q = _kernel("window")
  swapped = ql.Window(
    ql.lift(q.parts[0].part.dequantize().transpose(3, 2, 0, 1)),
    (0, 0, 1, 1),
    (12, 8, 3, 3),
  )
  x = IMAGE.transpose(0, 3, 1, 2)
  _conv(x, swapped, (2, 2), dimension_numbers=("NCHW", "OIHW", "NCHW"))
  _conv(x, swapped, (2, 2), dimension_numbers=None)
  for rank, letters in ((1, "W"), (3, "DHW")):
    w = draws.normal((*(3,) * rank, 4, 6), 8)
    x = draws.normal((2, *(7,) * rank, 4), 9)
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    q = ql.quantize(ql.cfws(), w)
    _conv(x, q, (2,) * rank, dimension_numbers=numbers)


def test_a_window_of_the_channels_is_no_window_of_space():
  part = draws.normal((3, 3, 4, 12), 5)
  window = ql.Window(ql.lift(part), (0, 0, 2, 0), (3, 3, 8, 12))
  _conv(IMAGE, window)
  _conv(IMAGE, ql.Sum((ql.lift(jnp.ones((3, 3, 8, 12))), window)))


@pytest.mark.parametrize("form", ["window", "window_inside"])
def test_the_centre_tap_runs_as_a_1x1_convolution(form):
  def run(x, w):
    return ops.conv(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

  program = jax.make_jaxpr(run)(IMAGE, _kernel(form))
  shapes = [
    equation.invars[1].aval.shape
    for equation in program.eqns
    if equation.primitive.name == "conv_general_dilated"
  ]
  assert sorted(shapes) == [(1, 1, 8, 12), (3, 3, 8, 12)]


@pytest.mark.parametrize("form", ["window", "affine"])
def test_conv_computes_in_the_type_it_is_told(form):
  x = IMAGE.astype(jnp.bfloat16)
  args = ((1, 1), "SAME")
  out = ops.conv(x, _kernel(form), *args, dimension_numbers=NHWC)
  assert out.dtype == jnp.float32
  out = ops.conv(
    x, _kernel(form), *args, dimension_numbers=NHWC, dtype=jnp.bfloat16
  )
  assert out.dtype == jnp.bfloat16


def test_conv_has_gradients():
  def loss(conv, w):
    def total(x):
      return jnp.sum(conv(x, w, (2, 2), "SAME", dimension_numbers=NHWC) ** 2)

    return jax.jit(jax.grad(total))(IMAGE)

  q = _kernel("window")
  dense = loss(jax.lax.conv_general_dilated, q.dequantize())
  np.testing.assert_allclose(loss(ops.conv, q), dense, rtol=1e-4, atol=1e-3)


BIG = draws.normal((256, 24), 11)
ROW = draws.normal((1, 256), 12)
KERNELS = {
  "affine": ql.rtn(3),
  "blocks": ql.rtn(4, granularity=ql.per_block(0, 64)),
  "icquant": ql.icquant(ql.rtn(2)),
  "exact": ql.easyquant(4, sigmas=2.0, steps=3),
  "parts": ql.splitquant(ql.icquant(ql.rtn(2)), k=2),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_take_every_packed_form(name, caplog):
  q = ql.prepare(ql.quantize(KERNELS[name], BIG))
  products._log.cache_clear()
  with caplog.at_level(logging.INFO, logger="quantlab.kernels"):
    out = ops.dot(ROW, q)
  assert forms.error(out, ROW, q) < 1e-5
  packed = [line for line in caplog.messages if "packed" in line]
  assert packed, caplog.messages
  ops.dot(ROW, q)
  assert [line for line in caplog.messages if "packed" in line] == packed


def test_the_log_says_why_a_weight_was_decoded(caplog):
  products._log.cache_clear()
  with caplog.at_level(logging.INFO, logger="quantlab.kernels"):
    ops.dot(ROW, ql.quantize(ql.rquant(4), BIG))
  assert caplog.messages == [
    "(1, 256) @ (256, 24): XLA (no kernel for codes on Bounded)"
  ]


@pytest.mark.parametrize(
  ("dtype", "most"),
  [(jnp.bfloat16, 5e-3), (jnp.float32, 1e-6)],
)
def test_types_of_a_kernels_product(dtype, most):
  x = ROW.astype(dtype)
  q = ql.quantize(ql.rtn(4), BIG.astype(dtype))
  out = ops.dot(x, q)
  assert out.dtype == dtype
  assert forms.error(out, x, q) < most
  numbers = (((1,), (0,)), ((), ()))
  wide = ops.dot_general(x, q, numbers, preferred_element_type=jnp.float32)
  assert wide.dtype == jnp.float32
  np.testing.assert_allclose(np.asarray(wide.astype(dtype)), np.asarray(out))


@pytest.mark.parametrize(
  ("equation", "shape", "kernel"),
  [
    ("...k,kn->...n", (1, 1, 256), (256, 24)),
    ("ak,kn->na", (1, 256), (256, 24)),
    ("bhd,hdm->bm", (1, 8, 32), (8, 32, 24)),
    ("abk,bkn->abn", (1, 2, 128), (2, 128, 24)),
  ],
)
def test_einsum_of_kernels(equation, shape, kernel):
  w, x = draws.normal(kernel, 13), draws.normal(shape, 14)
  q = ql.quantize(ql.rtn(4), w)
  out = ops.einsum(equation, x, q)
  expected = jnp.einsum(equation, x, q.dequantize(), precision="highest")
  assert out.shape == expected.shape
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("strides", "numbers"),
  [((2, 1), NHWC), ((1, 1), ("CNHW", "OIHW", "NHCW"))],
)
def test_a_1x1_convolution_is_a_product_of_matrices(strides, numbers, caplog):
  sizes = dict(zip("NHWC", (1, 2, 1, 256), strict=True))
  x = draws.normal([sizes[c] for c in numbers[0]], 15)
  sizes = dict(zip("HWIO", (1, 1, 256, 24), strict=True))
  w = draws.normal([sizes[c] for c in numbers[1]], 16)
  outputs = ql.per_channel(numbers[1].index("O"))
  q = ql.quantize(ql.rtn(4, granularity=outputs), w)
  products._log.cache_clear()
  with caplog.at_level(logging.INFO, logger="quantlab.kernels"):
    _conv(x, q, strides, [(0, 0), (0, 0)], dimension_numbers=numbers)
  assert "packed" in caplog.text
  _conv(x, q, strides, [(1, 0), (0, 0)], dimension_numbers=numbers)
