import dataclasses
import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import base, bits, grids, qtensor, stored
from quantlab.kernels import mosaic_tpu

SMALL = mosaic_tpu.Config(block_m=16, block_n=128, block_k=256)


def plane(rng, n, k, width, codes=None):
  codes = rng.integers(0, codes or 2**n, (k, width)).astype(np.uint8)
  words = bits.pack(jnp.asarray(codes), n, 0)
  return stored.Packed(words, n, 0, (-2,), (k,))


def affine(rng, n, groups, width):
  scale = rng.uniform(0.5, 2, (groups, width))
  zero = rng.uniform(0, 2**n - 1, (groups, width))
  spec = base.IntSpec(n, signed=False)
  return grids.Affine(
    *(jnp.asarray(a, jnp.float32) for a in (scale, zero)), spec
  )


def codebook(rng, n, groups, width):
  levels = np.sort(rng.standard_normal((groups, width, 2**n)))
  return grids.Codebook(jnp.asarray(levels, jnp.float32))


def tails(rng, n, groups, width):
  halves = [affine(rng, n - 1, groups, width) for _ in range(2)]
  return grids.Tails(*halves, base.IntSpec(n, signed=False))


def weight(parts, n, k, width, groups=1, seed=0):
  """Random codes on one grid, or on several with random labels."""
  rng = np.random.default_rng(seed)
  made = tuple(part(rng, n, groups, width) for part in parts)
  grid = made[0]
  if len(made) > 1:
    labels = plane(rng, len(made) - 1, k, width, len(made))
    grid = grids.Labelled(labels, made)
  return qtensor.QTensor(plane(rng, n, k, width), grid, jnp.float32)


def error(w, rows, **kwargs):
  """The largest error, relative to the product of magnitudes."""
  x = np.random.default_rng(1).standard_normal((rows, w.shape[0]))
  x = jnp.asarray(x, jnp.bfloat16)
  y = mosaic_tpu.matmul(x, w, **{"interpret": True, **kwargs})
  assert y.shape == (rows, w.shape[1])
  assert y.dtype == jnp.float32
  exact = [np.asarray(a, np.float64) for a in (x, w.dequantize())]
  magnitude = np.abs(exact[0]) @ np.abs(exact[1])
  return np.max(np.abs(y - exact[0] @ exact[1]) / magnitude)


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
  w = weight([affine], n, k, width, groups)
  assert error(w, rows, config=config) < 1e-6


@pytest.mark.parametrize(
  ("parts", "n", "k", "groups", "terms", "bound"),
  [([codebook], 4, 128, 8, 2, 1e-5), ([affine] * 3, 2, 256, 2, 3, 1e-6)],
)
def test_tables_are_as_exact_as_their_terms(parts, n, k, groups, terms, bound):
  w = weight(parts, n, k, 9, groups)
  assert error(w, 5, terms=terms) < bound


def test_one_term_is_the_nearest_of_bfloat16():
  w = weight([affine, tails], 2, 128, 9)
  one = jnp.eye(128, dtype=jnp.bfloat16)
  y = mosaic_tpu.matmul(one, w, interpret=True)
  near = np.asarray(w.dequantize()).astype(jnp.bfloat16)
  np.testing.assert_array_equal(y, near.astype(np.float32))


def test_blocks_of_128_with_labels_stay_within_bounds():
  # Tiles overhang K, where the simulator has no words; it checks every access.
  w = weight([codebook, codebook], 2, 384, 9)
  checked = pltpu.InterpretParams(out_of_bounds_reads="raise")
  assert error(w, 3, config=SMALL, interpret=checked) < 2e-3


@pytest.mark.parametrize("kind", ["TPU v5e", "TPU v6e"])
def test_lowers_for_tpus(kind):
  device = jax.sharding.AbstractDevice(kind, 1, "tpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    for parts, n, groups in [([affine], 3, 4), ([affine, tails], 2, 1)]:
      make = functools.partial(weight, parts, n, 512, 300, groups)
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
  w = weight([affine], n, k, 130, k // group if group else 1)
  assert error(w, rows, config=SMALL) < 1e-6


@pytest.mark.study
@pytest.mark.parametrize("k", [128, 512, 1408])
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("group", [None, 16, 128])
@pytest.mark.parametrize(
  "parts",
  [[codebook], [affine, tails], [codebook, codebook], [affine, affine, affine]],
)
def test_every_table(parts, n, k, group):
  w = weight(parts, n, k, 130, k // group if group else 1)
  assert error(w, 5, config=SMALL, terms=3) < 1e-6


def test_asked_wrong():
  x = jnp.ones((2, 128), jnp.bfloat16)
  w = weight([affine], 4, 128, 3)
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
  w = weight([affine], 4, 128, 3)
  signed = dataclasses.replace(w.codes, lo=-8)
  rng = np.random.default_rng(0)
  wide = grids.Labelled(plane(rng, 3, 128, 3), (w.grid,) * 8)
  for other, reason in [
    (dataclasses.replace(w, codes=signed), "plane.lo=-8"),
    (dataclasses.replace(w, codes=w.codes.unpack()), "no kernel for Arr"),
    (dataclasses.replace(w, grid=grids.Raw()), "Raw"),
    (dataclasses.replace(w, grid=wide), "128 values"),
    (weight([codebook], 2, 128, 3, 16), "groups of 8 "),
  ]:
    with pytest.raises(NotImplementedError, match=reason):
      mosaic_tpu.matmul(x, other)
