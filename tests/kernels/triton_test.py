import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import base, grids, qtensor, stored
from quantlab.kernels import triton
from quantlab.kernels import triton_decode as decode
from tests.kernels import forms

SMALL = triton.Config(rows=64)
SPLIT = triton.Config(rows=64, splits=2)

# (form, bits, K, N, G, M, terms, config): every width, form and path once.
CASES = [
  ("affine", 2, 1024, 70, 2, 1, 1, SPLIT),
  ("affine", 3, 512, 64, 4, 3, 1, SMALL),
  ("affine", 4, 384, 1, 12, 17, 1, triton.Config(splits=2)),
  ("affine", 8, 256, 130, 1, 2, 1, None),
  ("icquant", 2, 256, 64, 1, 2, 1, SMALL),
  ("codebook", 4, 128, 70, 1, 2, 1, SMALL),
  ("codebook", 2, 128, 64, 1, 2, 3, SMALL),
]
MORE = [
  *(("affine", b, 512, 70, g, 5, 1, SPLIT) for b in (2, 4, 8) for g in (1, 16)),
  *(("affine", 3, 256, 64, g, m, 1, None) for g in (1, 8) for m in (1, 40)),
  *(("affine", b, 128, 64, 1, 1, 1, SMALL) for b in (2, 4, 8)),
  *(("codebook", b, 256, 64, 1, 5, t, SPLIT) for b in (3, 4) for t in (1, 3)),
  *(("icquant", b, 512, 70, 1, 5, t, SPLIT) for b in (2, 3) for t in (1, 3)),
  *(("clusters", 2, 256, 64, 1, 5, t, SMALL) for t in (1, 3)),
]


def _activations(rows, depth, shift=0.0):
  draws = np.random.default_rng(1).standard_normal((rows, depth))
  return jnp.asarray(draws + shift, jnp.bfloat16)


def _check(form, bits, depth, columns, groups, rows, terms, config):
  w = forms.matrix(form, bits, (depth, columns), cells=groups)
  x = _activations(rows, depth, shift=1.0)
  y = triton.matmul(x, w, config=config, terms=terms, interpret=True)
  assert y.shape == (rows, columns)
  assert y.dtype == jnp.float32
  exact = form == "affine" or terms == 3
  assert forms.error(y, x, w) < (1e-6 if exact else 2**-8)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_float64(case):
  _check(*case)


@pytest.mark.study
@pytest.mark.parametrize("case", MORE)
def test_agrees_with_float64_more(case):
  _check(*case)


def _lowered(form, bits, groups, rows):
  make = functools.partial(forms.matrix, form, bits, (1024, 200), cells=groups)
  w = jax.eval_shape(make)
  x = jax.ShapeDtypeStruct((rows, 1024), jnp.bfloat16)
  device = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(triton.matmul).trace(x, w)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


# jax 0.11 and newer say so when they lower, which is not the library's call.
@pytest.mark.filterwarnings("ignore:The Pallas Triton:DeprecationWarning")
@pytest.mark.parametrize(
  "case", [("affine", 2, 8, 1), ("affine", 3, 1, 100), ("icquant", 2, 1, 16)]
)
def test_lowers_for_a_gpu(case):
  assert "triton" in _lowered(*case)


def test_units_cover_a_block_in_order():
  for block, bits in [(256, (3,)), (128, (4,)), (256, (2, 1)), (256, (8,))]:
    words, parts = decode.units(block, bits)
    assert [u.start for u in parts] == [*range(0, block, 2 * words)]
    for unit in parts:
      assert sum(field.width for field in unit.fields) == sum(bits)


def test_asked_wrong():
  w, x = forms.matrix("affine", 4, (256, 8)), _activations(2, 256)
  with pytest.raises(ValueError, match=r"x.shape=\(2, 128\)"):
    triton.matmul(x[:, :128], w)
  with pytest.raises(ValueError, match="float32"):
    triton.matmul(x.astype(jnp.float32), w)
  with pytest.raises(ValueError, match="terms=2"):
    triton.matmul(x, w, terms=2)
  with pytest.raises(ValueError, match="rows=100"):
    triton.Config(rows=100)
  with pytest.raises(ValueError, match="warps=8"):
    triton.Config(rows=64, warps=8)
  with pytest.raises(ValueError, match="splits=0"):
    triton.Config(splits=0)


@pytest.mark.parametrize(
  ("form", "bits", "depth", "groups", "rows"),
  [
    ("affine", 4, 256, 1, 129),  # rows
    ("affine", 3, 128, 1, 1),  # blocks of 12 words
    ("affine", 4, 256, 32, 1),  # groups of 8
    ("affine", 5, 256, 1, 1),
    ("codebook", 4, 256, 2, 1),  # tables for each group
    ("icquant", 4, 256, 1, 1),  # 32 entries
  ],
)
def test_left_to_others(form, bits, depth, groups, rows):
  w = forms.matrix(form, bits, (depth, 8), cells=groups)
  with pytest.raises(NotImplementedError):
    triton.matmul(_activations(rows, depth), w)


def test_other_forms_are_left_to_others():
  codes = stored.Packed.pack(jnp.zeros((256, 256)), 4, 0, (-1,))
  grid = grids.Affine(*jnp.ones((2, 1, 256)), base.IntSpec(4))
  w = qtensor.QTensor(codes, grid, jnp.float32)
  with pytest.raises(NotImplementedError, match="packed along K"):
    triton.matmul(_activations(1, 256), w)
  with pytest.raises(NotImplementedError, match="no kernel for Sum"):
    triton.matmul(_activations(1, 256), qtensor.Sum((w,)))
  w = forms.matrix("affine", 4, (256, 8))
  nested = qtensor.QTensor(w.codes, grids.Raw(), jnp.float32)
  with pytest.raises(NotImplementedError, match="Raw"):
    triton.matmul(_activations(1, 256), nested)


@pytest.mark.parametrize("rows", [1, 16, 17, 128])
@pytest.mark.parametrize("columns", [1, 4096, 28672])
def test_every_processor_has_work_or_k_is_used_up(rows, columns):
  config = triton.choose(rows, 8192, columns)
  tiles = -(-columns // config.rows)
  assert config.splits * tiles * 2 > triton.PROGRAMS or config.splits == 16
