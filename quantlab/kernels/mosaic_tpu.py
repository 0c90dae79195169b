"""Products with packed weights on TPUs: a Pallas kernel for Mosaic.

A program multiplies a tile of activations with a tile of words and adds up
along K. It decodes 256 rows of the weight at a time, a step, which stay in
registers. The halves of a word hold neighbouring codes, so a register of words
whose halves are made bfloat16 numbers is a register of twice as many rows.

- On a uniform grid a code becomes the top of the fraction of a number in
  [1, 2): three instructions for two codes, and exact. Scales and zeros are
  applied to the float32 products of a group.
- On any other grid, or with labels on any grids, label and code index a table
  of values, which the grid's own `decode` makes. A TPU looks 8 of them up at
  once, each lane in its own table.

Never run on a TPU so far. It compiles for v5e and v6e, and `interpret=True`
runs the same operations elsewhere.

Shape letters: M rows of activations, K contraction, N output, G groups along K,
S values of a table.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from quantlab.core import grids, qtensor
from quantlab.kernels import form
from quantlab.kernels import mosaic_tpu_decode as decode
from quantlab.kernels import mosaic_tpu_kernel as kernel

Array = jax.Array

MAX_VALUES = 64
"""The longest table. Each 8 values take one more look-up per code."""


@dataclasses.dataclass(frozen=True)
class Config:
  """The most that a program takes of each axis.

  Attributes:
    block_m: rows of activations, a multiple of 16.
    block_n: outputs, a multiple of 128.
    block_k: codes along K, a multiple of 256.
  """

  block_m: int = 256
  block_n: int = 512
  block_k: int = 2048

  def __post_init__(self):
    units = {"block_m": 16, "block_n": 128, "block_k": decode.STEP}
    for name, unit in units.items():
      value = getattr(self, name)
      if value < unit or value % unit:
        raise ValueError(f"{name} must be a multiple of {unit}, got {value}")


def matmul(
  x: Array,
  w: qtensor.QTensor,
  *,
  config: Config | None = None,
  terms: int = 1,
  interpret: Any = False,
) -> Array:
  """`x @ w.dequantize()`, accumulated in float32.

  Args:
    x: `[M, K]` bfloat16.
    w: `[K, N]` in kernel form (`quantlab.kernels.form`). The codes of a group
      are a multiple of 128 or divide it; where the grid is not `Affine`, they
      are at least 16, and labels and codes select one of at most 64 values.
    config: sizes of the tiles.
    terms: how many bfloat16 numbers a value is rounded to the sum of, where
      the grid is not `Affine`: 1 to 3; 3 keep float32. The codes of an `Affine`
      are exact.
    interpret: runs anywhere; `True`, or `pltpu.InterpretParams`.

  Returns:
    `[M, N]` float32.

  Raises:
    ValueError: `x` and `w` do not fit, or `terms` is out of range.
    NotImplementedError: the kernel cannot read such a weight.

  Example:
    >>> from quantlab.core import base, stored
    >>> packed = stored.Packed.pack(jnp.full((256, 1), 3), 2, 0, (-2,))
    >>> ones = jnp.ones((1, 1))
    >>> w = qtensor.QTensor(
    ...   packed, grids.Affine(ones, ones, base.UINT2), jnp.float32
    ... )
    >>> matmul(jnp.ones((1, 256), jnp.bfloat16), w, interpret=True)
    Array([[512.]], dtype=float32)
  """
  form.check(x, w)
  if terms not in (1, 2, 3):
    raise ValueError(f"terms must be 1, 2 or 3, got {terms=}")
  _check(w)
  return _matmul(x, w, config or Config(), terms, interpret)


def _check(w: qtensor.QTensor) -> None:
  """Refuses what the kernel cannot read."""
  for plane in form.planes(w):
    if plane.bits > 8:
      raise NotImplementedError(f"no kernel for {plane.bits=}")
  for part in _parts(w):
    if not isinstance(part, (grids.Affine, grids.Codebook, grids.Tails)):
      raise NotImplementedError(f"no kernel for {type(part).__name__}")
  uniform, size = isinstance(w.grid, grids.Affine), w.shape[0]
  group = size // form.num_cells(w.grid)
  unequal = group % 128 and 128 % group
  if size % 128 or unequal or (group < 16 and not uniform):
    raise NotImplementedError(f"no kernel for groups of {group} of K={size}")
  label_bits = _label_bits(w)
  values = 2 ** (w.codes.bits + label_bits)
  if label_bits > w.codes.bits or (values > MAX_VALUES and not uniform):
    raise NotImplementedError(
      f"no kernel for a table of {values} values, with {label_bits=}"
    )


def _parts(w: qtensor.QTensor) -> tuple[Any, ...]:
  """The grids that labels choose from, or the one grid."""
  return w.grid.grids if isinstance(w.grid, grids.Labelled) else (w.grid,)


def _label_bits(w: qtensor.QTensor) -> int:
  return sum(plane.bits for plane in form.planes(w)[1:])


@functools.partial(jax.jit, static_argnames=("config", "terms", "interpret"))
def _matmul(
  x: Array, w: qtensor.QTensor, config: Config, terms: int, interpret: Any
) -> Array:
  (rows, size), width = x.shape, w.shape[1]
  tile = _tile(size, config.block_k)
  grid = (
    pl.cdiv(rows, config.block_m),
    pl.cdiv(width, config.block_n),
    pl.cdiv(size, tile),
  )
  block_m = min(config.block_m, _round_up(rows, 16))
  block_n = min(config.block_n, _round_up(width, 128))
  uniform = isinstance(w.grid, grids.Affine)
  plan = kernel.Plan(
    size=size,
    groups=form.num_cells(w.grid),
    bits=w.codes.bits,
    label_bits=_label_bits(w),
    terms=terms,
    tile=tile,
    align=decode.SUBLANES if uniform else 1,
  )
  if uniform:
    tables = [
      jnp.broadcast_to(a.astype(jnp.float32), (plan.groups, width))
      for a in (w.grid.scale, w.grid.zero)
    ]
  else:
    tables = [_table(w, plan)]
  operands = [
    *((a.words, tile * a.bits // 32) for a in form.planes(w)),
    *((table, plan.fetched) for table in tables),
  ]

  def block(a, rows):
    whole, middle = rows == a.shape[0], a.shape[1:-1]
    return pl.BlockSpec(
      (rows, *middle, block_n),
      lambda i, j, k: (0 if whole else k, *(0 for _ in middle), j),
    )

  # The words past the end hold codes like any others; they count 0 times.
  x = jnp.pad(x, ((0, -rows % 16), (0, grid[2] * tile - size)))
  product = pl.pallas_call(
    functools.partial(
      kernel.program, kernel.uniform if uniform else kernel.tabled, plan
    ),
    grid=grid,
    in_specs=[
      pl.BlockSpec((block_m, tile), lambda i, j, k: (i, k)),
      *(block(*operand) for operand in operands),
    ],
    out_specs=pl.BlockSpec((block_m, block_n), lambda i, j, k: (i, j)),
    out_shape=jax.ShapeDtypeStruct((x.shape[0], width), jnp.float32),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    interpret=interpret,
  )(x, *(a for a, _ in operands))
  return product[:rows]


def _round_up(size: int, unit: int) -> int:
  return -(-size // unit) * unit


def _tile(size: int, most: int) -> int:
  """Codes of a tile along K: of those over half the most, the least waste."""
  most = min(most, _round_up(size, decode.STEP))
  tiles = range(most, most // 2, -decode.STEP)
  return min(tiles, key=lambda tile: _round_up(size, tile))


def _table(w: qtensor.QTensor, plan: kernel.Plan) -> Array:
  """Bits of the values of each label and code, `[G, terms * 2 * S, N]`.

  Of each term first where they are a low half of a word, then a high one.
  """
  count, width = 2**plan.bits, w.shape[1]
  codes = jnp.tile(jnp.arange(count, dtype=jnp.float32), plan.groups)
  codes = jnp.broadcast_to(codes[:, None], (codes.size, width))
  values = jnp.concatenate(
    [
      part.decode(codes).reshape(plan.groups, count, width)
      for part in _parts(w)
    ],
    axis=1,
  )
  size = max(2 ** (plan.bits + plan.label_bits), decode.SUBLANES)
  values = jnp.pad(values, ((0, 0), (0, size - values.shape[1]), (0, 0)))
  halves = []
  for _ in range(plan.terms):
    # A compiler may take a cast to bfloat16 and back for nothing.
    head = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    high = jax.lax.bitcast_convert_type(head, jnp.uint32)
    halves += [high >> 16, high]
    values -= head
  return jnp.concatenate(halves, axis=1)
