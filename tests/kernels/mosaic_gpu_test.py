import functools

import jax
from jax.experimental.mosaic import gpu as mgpu
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import bits as layout
from quantlab.core import grids, qtensor
from quantlab.kernels import mosaic_decode, mosaic_gpu
from tests import draws
from tests.kernels import forms

# bits, K, N, M, G: pairs of bits, blocks, groups and odd sizes.
CASES = [
  (4, 512, 70, 5, 4),
  (2, 384, 130, 16, 1),
  (3, 512, 64, 20, 4),
  (8, 256, 1, 1, 2),
]
MORE = [
  (bits, k, n, m, k // group)
  for bits in (2, 3, 4, 8)
  for k in (384, 512)
  for group in (32, 64, 128, k)
  for n, m in ((1, 1), (200, 9), (64, 72))
  if bits != 3 or k == 512
]


def _check(bits, k, n, m, cells, config=None):
  w = forms.matrix("affine", bits, (k, n), cells=cells)
  x = draws.normal((m, k)).astype(jnp.bfloat16)
  out = mosaic_gpu.matmul(x, w, config=config, interpret=True)
  assert out.shape == (m, n)
  assert out.dtype == jnp.float32
  assert forms.error(out, x, w) < 1e-6


@pytest.mark.parametrize(("bits", "k", "n", "m", "cells"), CASES)
def test_product_is_exact(bits, k, n, m, cells):
  _check(bits, k, n, m, cells)


@pytest.mark.study
@pytest.mark.parametrize(("bits", "k", "n", "m", "cells"), MORE)
def test_product_is_exact_for_all_forms(bits, k, n, m, cells):
  _check(bits, k, n, m, cells)


def test_groups_longer_than_a_block_and_splits():
  _check(2, 1024, 64, 8, 2, mosaic_gpu.Config(64, 8, 2, splits=2, warpgroups=1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_of_a_block(bits):
  codes = draws.integers((256, 64), 0, 2**bits)
  words = layout.pack(codes, bits, 0)

  @jax.jit
  def decode(words):
    parts = []
    for runs in mosaic_decode.cut(256, bits, 32):
      for run in runs:
        loaded = [words[p.word : p.word + run.words] for p in run.pieces]
        parts.append(mosaic_decode.codes(run, loaded, interpret=True))
    return jnp.concatenate(parts, axis=1)

  np.testing.assert_array_equal(decode(words).T, codes)


def _places(layout, at):
  """The thread and the register of elements, and the place within it."""
  index = layout.tiling.tile_indices(at)
  sizes = layout.tiling.tile_shape(tuple(int(a.max()) + 1 for a in at))
  held = (*layout.warp_dims, *layout.lane_dims)
  thread = np.ravel_multi_index(
    [index[d] for d in held], [sizes[d] for d in held]
  )
  inside = {d % len(index) for d in (*held, layout.vector_dim)}
  rest = [0 * a if d in inside else a for d, a in enumerate(index)]
  return thread, tuple(rest), index[layout.vector_dim]


def test_registers_hold_what_wgmma_wants():
  shape = 16, 128
  words = np.indices(shape)
  held = mosaic_decode.WORDS.to_mgpu()
  thread, register, _ = _places(held, tuple(words))
  found = np.full((128, *held.registers_shape(shape)), -1)
  found[(thread, *register)] = np.arange(words[0].size).reshape(shape)
  found = np.stack([mosaic_decode.reorder(one) for one in found])

  n, k = np.indices((128, 32))
  thread, register, half = _places(mgpu.WGMMA_LAYOUT, (n, k))
  np.testing.assert_array_equal(found[(thread, *register)], k // 2 * 128 + n)
  np.testing.assert_array_equal(half, k % 2)


@pytest.mark.parametrize(
  ("bits", "k", "m", "cells"), [(4, 512, 16, 1), (2, 384, 40, 3)]
)
def test_lowers_for_hopper(bits, k, m, cells):
  device = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  x = jax.ShapeDtypeStruct((m, k), jnp.bfloat16)
  make = functools.partial(forms.matrix, "affine", bits, (k, 64), cells=cells)
  w = jax.eval_shape(make)
  with jax.sharding.use_abstract_mesh(mesh):
    lowered = mosaic_gpu.matmul.trace(x, w).lower(lowering_platforms=("cuda",))
  assert "mosaic_gpu" in lowered.as_text()


def test_refusals():
  w = forms.matrix("affine", 4, (256, 64))
  x = jnp.zeros((2, 256), jnp.bfloat16)
  with pytest.raises(ValueError, match=r"\(2, 128\).*\(256, 64\)"):
    mosaic_gpu.matmul(x[:, :128], w)
  with pytest.raises(ValueError, match="float32"):
    mosaic_gpu.matmul(x.astype(jnp.float32), w)
  with pytest.raises(ValueError, match=r"splits=3 .* 1 blocks"):
    mosaic_gpu.matmul(x, w, config=mosaic_gpu.Config(splits=3))
  book = grids.Codebook(jnp.zeros((1, 64, 16)))
  with pytest.raises(NotImplementedError, match="Codebook"):
    mosaic_gpu.matmul(x, qtensor.QTensor(w.codes, book, jnp.float32))
  with pytest.raises(NotImplementedError, match="3 bits"):
    mosaic_gpu.matmul(x[:, :128], forms.matrix("affine", 3, (128, 8)))


@pytest.mark.parametrize(
  "wrong", [{"block_n": 96}, {"block_m": 12}, {"stages": 1}, {"splits": 0}]
)
def test_config_names_what_is_wrong(wrong):
  (name,) = wrong
  with pytest.raises(ValueError, match=name):
    mosaic_gpu.Config(**wrong)
