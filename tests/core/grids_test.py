import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import base, grids
from tests import draws


def _grids():
  spec = base.UINT2
  half = base.IntSpec(1, signed=False)
  scale = jnp.array([[0.5, 0.25]])
  affine = grids.Affine(scale, jnp.array([[1.5, 0.0]]), spec)
  book = grids.Codebook(jnp.array([[[-1.0, 0.0, 0.5, 4.0], [0, 0, 1, 2]]]))
  tails = grids.Tails(
    grids.Affine(scale, jnp.array([[5.0, 9.0]]), half),
    grids.Affine(scale, jnp.array([[-5.0, -9.0]]), half),
    spec,
  )
  labels = jnp.array([[0, 1], [1, 0], [0, 0], [1, 1]])
  return {
    "affine": affine,
    "codebook": book,
    "tails": tails,
    "labelled": grids.Labelled(labels, (affine, book)),
  }


@pytest.mark.parametrize("name", _grids())
def test_encode_inverts_decode_at_every_level(name):
  grid = _grids()[name]
  lo, hi = grid.bounds
  for code in range(lo, hi + 1):
    codes = jnp.full((4, 2), float(code))
    values = grid.decode(codes)
    again = grid.decode(jnp.round(grid.encode(values)))
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("name", ["affine", "codebook", "labelled"])
def test_rounding_a_code_picks_the_nearest_level(name):
  grid = _grids()[name]
  x = draws.normal((4, 2)) * 2
  lo, hi = grid.bounds
  levels = jnp.stack(
    [grid.decode(jnp.full((4, 2), float(c))) for c in range(lo, hi + 1)]
  )
  best = jnp.min(jnp.abs(levels - x[None]), axis=0)
  codes = jnp.clip(jnp.round(grid.encode(x)), lo, hi)
  np.testing.assert_allclose(jnp.abs(grid.decode(codes) - x), best, atol=1e-6)


def test_codebook_decodes_integers_exactly_and_lines_in_between():
  grid = grids.Codebook(jnp.array([[[0.1, 0.2, 0.7]]]))
  codes = jnp.array([[0.0], [1.0], [2.0], [1.5]])
  expected = jnp.array([[0.1], [0.2], [0.7], [0.45]])
  np.testing.assert_array_equal(grid.decode(codes)[:3], expected[:3])
  np.testing.assert_allclose(grid.decode(codes), expected, rtol=1e-6)


def test_raw_decodes_only_its_part():
  mask = jnp.array([True, False])
  assert grids.Raw(mask).decode(jnp.array([2.0, 3.0])).tolist() == [2, 0]


def test_labelled_bounds_cover_every_label():
  narrow = grids.Affine(
    jnp.ones((1, 1)), jnp.zeros((1, 1)), base.IntSpec(4, symmetric=True)
  )
  full = grids.Affine(jnp.ones((1, 1)), jnp.zeros((1, 1)), base.INT4)
  assert grids.Labelled(jnp.zeros((1, 1)), (narrow, full)).bounds == (-8, 7)
