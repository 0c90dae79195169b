import dataclasses
import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import grids, stored
from quantlab.kernels import mosaic_tpu
from tests import draws
from tests.kernels import forms

SMALL = mosaic_tpu.Config(block_m=16, block_n=128, block_k=256)


def _error(w, rows, **kwargs):
  x = draws.normal((rows, w.shape[0]), 1).astype(jnp.bfloat16)
  y = mosaic_tpu.matmul(x, w, **{"interpret": True, **kwargs})
  assert y.shape == (rows, w.shape[1])
  assert y.dtype == jnp.float32
  return forms.error(y, x, w)


# Blocks of 256 and of 128 codes; ragged M, N and K; groups from 32 codes on.
@pytest.mark.parametrize(
  ("n", "rows", "k", "width", "groups", "config"),
  [
    (2, 20, 512, 130, 1, SMALL),
    (3, 1, 384, 5, 3, None),
    (4, 3, 640, 1, 20, mosaic_tpu.Config(block_k=512)),
    (8, 17, 256, 200, 2, None),
    (3, 16, 256, 128, 1, None),
  ],
)
def test_uniform_codes_are_exact(n, rows, k, width, groups, config):
  w = forms.matrix("affine", n, (k, width), cells=groups)
  assert _error(w, rows, config=config) < 1e-6


@pytest.mark.parametrize(
  ("kind", "n", "k", "groups", "terms", "bound"),
  [("codebook", 4, 128, 8, 2, 1e-5), ("clusters", 2, 256, 2, 3, 1e-6)],
)
def test_tables_are_as_exact_as_their_terms(kind, n, k, groups, terms, bound):
  w = forms.matrix(kind, n, (k, 9), cells=groups)
  assert _error(w, 5, terms=terms) < bound


def test_one_term_is_the_nearest_of_bfloat16():
  w = forms.matrix("icquant", 2, (128, 9))
  one = jnp.eye(128, dtype=jnp.bfloat16)
  y = mosaic_tpu.matmul(one, w, interpret=True)
  near = np.asarray(w.dequantize()).astype(jnp.bfloat16)
  np.testing.assert_array_equal(y, near.astype(np.float32))


def test_blocks_of_128_with_labels_stay_within_bounds():
  # Tiles overhang K, where the simulator has no words; it checks every access.
  w = forms.matrix("two_tables", 2, (384, 9))
  checked = pltpu.InterpretParams(out_of_bounds_reads="raise")
  assert _error(w, 3, config=SMALL, interpret=checked) < 2e-3


@pytest.mark.parametrize("kind", ["TPU v5e", "TPU v6e"])
def test_lowers_for_tpus(kind):
  device = jax.sharding.AbstractDevice(kind, 1, "tpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    for kind, n, groups in [("affine", 3, 4), ("icquant", 2, 1)]:
      make = functools.partial(forms.matrix, kind, n, (512, 300), cells=groups)
      x = jax.ShapeDtypeStruct((1, 512), jnp.bfloat16)
      traced = jax.jit(mosaic_tpu.matmul).trace(x, jax.eval_shape(make))
      lowered = traced.lower(lowering_platforms=("tpu",))
      assert "tpu_custom_call" in lowered.as_text()


@pytest.mark.study
@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("k", [128, 512, 1408])
@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("group", [None, 32, 128])
def test_every_uniform_form(n, k, rows, group):
  w = forms.matrix("affine", n, (k, 130), cells=k // group if group else 1)
  assert _error(w, rows, config=SMALL) < 1e-6


@pytest.mark.study
@pytest.mark.parametrize("k", [128, 512, 1408])
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("group", [None, 16, 128])
@pytest.mark.parametrize(
  "kind", ["codebook", "icquant", "two_tables", "clusters"]
)
def test_every_table(kind, n, k, group):
  w = forms.matrix(kind, n, (k, 130), cells=k // group if group else 1)
  assert _error(w, 5, config=SMALL, terms=3) < 1e-6


def test_asked_wrong():
  x = jnp.ones((2, 128), jnp.bfloat16)
  w = forms.matrix("affine", 4, (128, 3))
  with pytest.raises(
    ValueError, match=r"x.shape=\(2, 64\), w.shape=\(128, 3\)"
  ):
    mosaic_tpu.matmul(x[:, :64], w)
  with pytest.raises(ValueError, match="float32"):
    mosaic_tpu.matmul(x.astype(jnp.float32), w)
  with pytest.raises(ValueError, match="terms=4"):
    mosaic_tpu.matmul(x, w, terms=4)
  with pytest.raises(ValueError, match="block_n must be a multiple of 128"):
    mosaic_tpu.Config(block_n=100)


def test_refuses_what_it_cannot_read():
  x = jnp.ones((2, 128), jnp.bfloat16)
  w = forms.matrix("affine", 4, (128, 3))
  signed = dataclasses.replace(w.codes, lo=-8)
  labels = stored.Packed.pack(draws.integers((128, 3), 0, 8), 3, 0, (-2,))
  wide = grids.Labelled(labels, (w.grid,) * 8)
  for other, reason in [
    (dataclasses.replace(w, codes=signed), "plane.lo=-8"),
    (dataclasses.replace(w, codes=w.codes.unpack()), "no kernel for Arr"),
    (dataclasses.replace(w, grid=grids.Raw()), "Raw"),
    (dataclasses.replace(w, grid=wide), "128 values"),
    (forms.matrix("codebook", 2, (128, 3), cells=16), "groups of 8 "),
  ]:
    with pytest.raises(NotImplementedError, match=reason):
      mosaic_tpu.matmul(x, other)
