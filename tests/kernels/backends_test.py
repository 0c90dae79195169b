import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.kernels import backends
from tests import draws
from tests.kernels import forms

W = forms.matrix("codebook", 2, (256, 64))
X = draws.normal((8, 256), 1)


@pytest.fixture
def seen(monkeypatch):
  """Puts a kernel in plain XLA in the place of an accelerator's."""
  shapes = []

  def matmul(x, w, *, interpret, terms=1):
    assert interpret
    assert x.dtype == jnp.bfloat16
    shapes.append((x.shape, w.shape, terms))
    return jnp.dot(x.astype(jnp.float32), w.dequantize())

  def missing(x, w, **options):
    raise NotImplementedError("not today")

  for name, function in (("plain", matmul), ("missing", missing)):
    module = types.SimpleNamespace(matmul=function)
    monkeypatch.setitem(sys.modules, f"quantlab.kernels.{name}", module)
  table = {"gpu": ("missing", "plain"), "tpu": ("missing", "absent")}
  monkeypatch.setattr(backends, "_ACCELERATORS", table)
  return shapes


def _run(x, w, platform="gpu"):
  return backends.on_accelerator(x, w, platform, interpret=True)


@pytest.mark.parametrize("dtype", sorted(backends._TERMS))
def test_terms_add_up_to_the_activation(seen, dtype):
  x = X.astype(dtype)
  assert forms.error(_run(x, W), x, W) < 1e-6
  terms = backends._TERMS[dtype]
  assert seen[-1] == ((8 * terms, 256), (256, 64), min(3, 2 * terms - 1))
  affine = forms.matrix("affine", 2, (256, 64))
  assert forms.error(_run(x, affine), x, affine) < 1e-6
  assert seen[-1][-1] == 1  # codes are exact in bfloat16


def test_all_reasons_are_told(seen):
  with pytest.raises(
    NotImplementedError, match="missing: not today; absent: No module"
  ):
    _run(X, W, "tpu")
  assert not seen


def test_rows_and_columns_stay_on_their_devices(seen):
  devices = np.array(jax.devices()[:4]).reshape(2, 2)
  mesh = jax.sharding.Mesh(devices, ("a", "b"))

  def on(*names):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))

  w = jax.tree.map(lambda leaf: jax.device_put(leaf, on(None, "b")), W)
  x = jax.device_put(X, on("a", None))
  run = jax.jit(_run)
  y = run(x, w)
  assert y.sharding.spec == jax.sharding.PartitionSpec("a", "b")
  assert forms.error(y, X, W) < 1e-6
  assert seen[-1][:2] == ((12, 256), (256, 32))
  assert "all-gather" not in run.lower(x, w).compile().as_text()


def test_batches_of_weights(seen):
  other = forms.matrix("codebook", 2, (256, 64), seed=1)
  stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), W, other)
  y = jax.vmap(_run)(jnp.stack([X, -X]), stack)
  assert seen[-1][1] == (256, 64)
  for row, x, w in zip(y, (X, -X), (W, other), strict=True):
    assert forms.error(row, x, w) < 1e-6


def test_derivatives_are_those_of_the_decoded_product():
  w = forms.matrix("icquant", 2, (256, 24))

  def loss(x, tables, product):
    grid = w.grid.__class__(w.grid.labels, tables)
    kernel = w.__class__(w.codes, grid, w.dtype)
    return jnp.sum(jnp.sin(product(x, kernel)))

  def dense(x, kernel):
    return jnp.dot(x, kernel.dequantize(), precision="highest")

  x = X[:1]
  found, expected = (
    jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(x, w.grid.grids, product)
    for product in (backends.matmul, dense)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2),
    found,
    expected,
  )
  tangent = jax.jvp(lambda x: backends.matmul(x, w), (x,), (x,))[1]
  np.testing.assert_allclose(tangent, dense(x, w), rtol=1e-4, atol=1e-3)


def test_a_platform_without_kernels(monkeypatch):
  monkeypatch.setattr(backends, "_platform", lambda: ("metal", True))
  with pytest.raises(NotImplementedError, match="platform='metal'"):
    backends.matmul(X, W)
