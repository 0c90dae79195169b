import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import base, numerics
from tests import draws


@pytest.mark.parametrize(
  ("granularity", "expected"),
  [
    (numerics.per_tensor, (1, 1, 1)),
    (numerics.per_channel(-1), (1, 1, 6)),
    (numerics.per_channel(0, -1), (2, 1, 6)),
    (numerics.per_block(1, 4), (2, 2, 6)),
    (numerics.per_block(-1, 2), (2, 8, 3)),
  ],
)
def test_columns_expand_and_grids_agree(granularity, expected):
  shape = (2, 8, 6)
  grid = granularity(shape)
  assert grid == expected
  # A cell's number, spread over its elements, is constant in every column.
  cells = jnp.arange(float(np.prod(grid))).reshape(grid)
  columns = numerics.columns(numerics.expand(cells, shape), grid)
  assert columns.shape == (96 // cells.size, *grid)
  np.testing.assert_array_equal(
    columns, jnp.broadcast_to(cells[None], columns.shape)
  )
  # Columns hold every element once.
  x = jnp.arange(96.0).reshape(shape)
  assert sorted(numerics.columns(x, grid).ravel().tolist()) == list(range(96))


def test_each_row_sees_one_row_per_cell():
  x = draws.normal((2, 8, 6))
  columns = numerics.columns(x, (2, 4, 6))
  out = numerics.each_row(
    lambda rows: {"sum": rows.sum(1), "all": rows}, columns
  )
  assert out["sum"].shape == (2, 4, 6)
  np.testing.assert_allclose(out["sum"], columns.sum(0), rtol=1e-5)
  np.testing.assert_array_equal(out["all"], jnp.moveaxis(columns, 0, -1))


def test_each_row_is_the_same_for_sharded_columns():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
  spec = jax.sharding.PartitionSpec(None, "x")
  x = draws.normal((32, 16))
  sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

  @jax.jit
  def run(x):
    columns = numerics.columns(x, (4, 16))
    return numerics.each_row(lambda rows: rows.sum(1), columns)

  np.testing.assert_allclose(run(sharded), run(x), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2048, 256), (7, 3), (2**15, 33)])
def test_by_columns_changes_nothing(shape):
  x = draws.normal(shape)
  start = jnp.arange(float(shape[1]))

  def function(x, start):
    return jnp.cumsum(x, axis=0)[:5] + start[None]

  np.testing.assert_allclose(
    numerics.by_columns(function, x, start), function(x, start), rtol=1e-5
  )


def test_fold_and_unfold_are_inverse():
  x = jnp.arange(120).reshape(2, 3, 4, 5)
  for axes in [(-1,), (-2,), (-4, -2), (-3, -2), (-4, -3, -2, -1)]:
    dims = tuple(x.shape[a] for a in axes)
    y = numerics.fold(x, axes)
    assert y.shape[-1] == np.prod(dims)
    np.testing.assert_array_equal(numerics.unfold(y, axes, dims), x)


def test_scatter_drops_what_is_past_the_end():
  out = numerics.scatter(jnp.array([[0, 5], [2, 1]]), jnp.ones((2, 2)), 3)
  assert out.tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
  ("granularity", "message"),
  [
    (numerics.per_block(0, 3), r"axis 0 of shape \(8, 6\) has 8 .*blocks of 3"),
    (numerics.per_block(2, 2), r"axis 2 is not an axis of shape \(8, 6\)"),
    (numerics.per_channel(5), "axis 5"),
    (numerics.per_block(0, 0), "blocks of 0"),
  ],
)
def test_granularity_errors_show_the_values(granularity, message):
  with pytest.raises(ValueError, match=message):
    granularity((8, 6))


def _range(lo, hi):
  return base.Range(jnp.array([lo]), jnp.array([hi]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("value", [0.0, 3.0, -0.25, 1e-4])
def test_constant_rows_are_exact(dtype, value):
  value = float(jnp.asarray(value, dtype))
  for spec in (base.INT4, base.UINT2):
    scale, zero = numerics.affine_from_range(_range(value, value), spec, dtype)
    assert scale.dtype == zero.dtype == dtype
    assert float(scale[0]) > 0
    scale, zero = float(scale[0]), float(zero[0])
    code = np.clip(np.round(value / scale + zero), spec.lo, spec.hi)
    assert (code - zero) * scale == value


@pytest.mark.parametrize("spec", [base.INT4, base.UINT3, base.INT8])
def test_ends_of_an_asymmetric_range_are_levels(spec):
  scale, zero = numerics.affine_from_range(_range(-0.7, 2.0), spec, jnp.float32)
  levels = (jnp.array([spec.lo, spec.hi]) - zero) * scale
  np.testing.assert_allclose(levels, [-0.7, 2.0], rtol=1e-6)


def test_two_symmetric_conventions():
  narrow = base.IntSpec(4, symmetric=True)
  full = base.IntSpec(4, symmetric=True, narrow=False)
  range_ = _range(-1.5, 1.0)
  step, zero = numerics.affine_from_range(range_, narrow, jnp.float32)
  assert (narrow.lo, narrow.hi) == (-7, 7)
  assert float(step[0]) == pytest.approx(1.5 / 7)
  assert not zero.any()
  step, _ = numerics.affine_from_range(range_, full, jnp.float32)
  assert (full.lo, full.hi) == (-8, 7)
  assert float(step[0]) == pytest.approx(1.5 / 7.5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_zero_point_stays_finite_for_narrow_ranges_far_out(dtype):
  scale, zero = numerics.affine_from_range(
    _range(1.0, 1.0 + 1e-6), base.UINT2, dtype
  )
  assert jnp.isfinite(scale).all()
  assert jnp.isfinite(zero).all()
  value = (1 - float(zero[0])) * float(scale[0])
  assert value == pytest.approx(1.0, rel=4 * float(jnp.finfo(dtype).eps))


def test_ste_round():
  x = jnp.array([0.5, 1.5, 2.5, -0.5, 0.3])
  assert numerics.ste_round(x).tolist() == [0, 2, 2, 0, 0]
  assert jax.grad(lambda x: numerics.ste_round(x).sum())(x).tolist() == [1] * 5


@pytest.mark.parametrize("bits", [0, 17])
def test_spec_refuses_bits_out_of_range(bits):
  with pytest.raises(ValueError, match=str(bits)):
    base.IntSpec(bits)


@pytest.mark.parametrize("bits", ["4", 4.0, True])
def test_spec_refuses_other_types(bits):
  with pytest.raises(TypeError, match=str(bits)):
    base.IntSpec(bits)
