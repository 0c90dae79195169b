"""Products with packed weights on NVIDIA GPUs, by Pallas Triton.

A tile of `rows` outputs runs through K in blocks of codes. Words come as they
are stored, N minor, and are turned in registers: the weights are the left
operand of a tensor-core product, `w.T @ x.T`, which takes it from registers.
Rows of the tile are in such an order that four neighbours are one thread's.

Codes of a uniform grid are exact operands. What their grid adds and multiplies
is applied to sums: for each group inside, and for whole columns outside of the
kernel. Values of other grids are looked up, rounded to bf16 (see
`triton_decode`). K is split over programs that each write their part; XLA adds
the parts, so the result does not depend on their order.

Within a block sums are the tensor core's, which need not round to nearest;
blocks are added in float32 arithmetic, which does.

Shape letters: M rows of activations, K contraction, N outputs, G groups of K,
S splits of K, E entries of a table.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
import jax.numpy as jnp

from quantlab.core import bits as layout
from quantlab.core import grids, qtensor
from quantlab.kernels import form, tuned
from quantlab.kernels import triton_decode as decode
from quantlab.kernels import triton_kernel as kernel

Array = jax.Array

MOST_ROWS = 128
"""M beyond which the weights are better decoded once, for XLA's product.

Half as many where a program has the most in registers: see `_most_rows`.
"""

TABLES = (grids.Affine, grids.Codebook, grids.Tails)
"""Grids that a table can hold, for each label one."""

PROGRAMS = 264
"""What the rule wants to have at least: two for each processor of an H200."""


@dataclasses.dataclass(frozen=True)
class Config:
  """How the work is divided.

  Attributes:
    rows: outputs of a tile: 64, 128 or 256.
    splits: S, programs that share the K of a tile.
    warps: of a program, 4 or 8; 16 rows each, or a multiple.
    stages: of the pipeline that loads words and activations.
  """

  rows: int = 128
  splits: int = 1
  warps: int = 4
  stages: int = 4

  def __post_init__(self):
    if self.rows not in (64, 128, 256) or self.warps not in (4, 8):
      raise ValueError(
        f"rows are 64, 128 or 256, warps 4 or 8, got {self.rows=} {self.warps=}"
      )
    if self.rows < 16 * self.warps:
      raise ValueError(f"a warp has 16 rows, got {self.rows=} {self.warps=}")
    if self.splits < 1 or self.stages < 1:
      raise ValueError(f"at least 1 each: {self.splits=} {self.stages=}")


def matmul(
  x: Array,
  w: qtensor.QTensor,
  *,
  config: Config | None = None,
  terms: int = 1,
  interpret: bool = False,
) -> Array:
  """`x @ w` with float32 accumulation.

  Args:
    x: `[M, K]` bf16.
    w: `[K, N]`, codes packed along K from 0. On an `Affine` grid with any
      groups along K that divide a block of codes or are multiples of it; or,
      with one grid for each column, any grid of at most 16 entries: `Codebook`
      up to 4 bits, `Labelled` with labels of 1 or 2 bits.
    config: how to divide the work; by default as tuned (`tuned.lookup`), or by
      a rule (`choose`), and at most 128 rows or 64 (`_most_rows`).
    terms: 1 rounds values that are looked up to bf16, 3 takes them as sums of
      three bf16 numbers. An `Affine` grid is exact in either case.
    interpret: runs on any device, slowly.

  Returns:
    `[M, N]` float32.

  Raises:
    ValueError: the shapes do not fit, x is not bf16, or terms are not 1 or 3.
    NotImplementedError: this kernel does not take such a weight.

  Example:
    >>> import numpy as np
    >>> from quantlab.core import stored
    >>> codes = stored.Packed.pack(jnp.ones((256, 64)), 4, 0, (-2,))
    >>> one = jnp.ones((1, 64))
    >>> grid = grids.Affine(one / 2, one - 1, None)
    >>> w = qtensor.QTensor(codes, grid, jnp.float32)
    >>> x = jnp.ones((2, 256), jnp.bfloat16)
    >>> np.unique(matmul(x, w, interpret=True)).tolist()
    [128.0]
  """
  form.check(x, w)
  if terms not in (1, 3):
    raise ValueError(f"terms must be 1 or 3, got {terms=}")
  most = _most_rows(w, terms)
  if config is None and x.shape[0] > most:
    raise NotImplementedError(f"at most {most} rows, got {x.shape=}")
  plan = _plan(x.shape[0], w, terms, config, interpret)
  return _matmul(plan, x, w)


def choose(rows: int, depth: int, columns: int, terms: int = 1) -> Config:
  """The rule for how to divide the work.

  Small products are split until every processor has two programs. The rule is
  from compiling for an H200, where shared memory and registers suffice; it is
  not from timing.

  Args:
    rows: M.
    depth: K.
    columns: N.
    terms: of a value that is looked up.
  """
  tile, warps, stages = (128, 4, 4) if rows <= 16 else (128, 8, 3)
  if rows > 64:
    stages = 2
  if terms > 1:
    tile, warps = 64, 4
  return Config(tile, splits(tile, depth, columns), warps, stages)


def splits(tile: int, depth: int, columns: int) -> int:
  """S by the rule, for tiles of so many rows."""
  blocks = depth // layout.block_size(depth)
  return max(1, min(PROGRAMS // -(-columns // tile), blocks // 2))


def _division(key: tuned.Key) -> Config:
  """As tuned for the device's kind, or by the rule."""
  found = tuned.lookup(tuned.device_kind(), key)
  if found is None:
    return choose(key.m, key.k, key.n, key.terms)
  return Config(**{"splits": splits(found["rows"], key.k, key.n), **found})


def _most_rows(w: qtensor.QTensor, terms: int) -> int:
  """M up to which no register of an H200 goes to memory."""
  tables = not _uniform(w)
  groups = not tables and w.grid.scale.shape[0] > 1
  full = (tables and terms > 1) or (groups and w.codes.bits == 8)
  return MOST_ROWS // 2 if full else MOST_ROWS


def _uniform(w) -> bool:
  return isinstance(w.grid, grids.Affine)


def _plan(rows, w, terms, config, interpret) -> kernel.Plan:
  depth, columns = w.shape
  block = layout.block_size(depth)
  bits = tuple(plane.bits for plane in form.planes(w))
  parts = _parts(w.grid)
  if not all(isinstance(part, TABLES) for part in parts):
    kinds = [type(part).__name__ for part in parts]
    raise NotImplementedError(f"grids are of {TABLES}, got {kinds}")
  groups = {leaf.shape[0] for leaf in jax.tree.leaves(parts)}
  group = depth // max(groups)
  uniform = _uniform(w)
  if not uniform and (max(groups) > 1 or sum(bits) > 4):
    raise NotImplementedError(
      f"tables of 16 entries for each column, got {bits=} and {groups=}"
    )
  if depth % 128 or (block % group and group % block):
    raise NotImplementedError(f"blocks of {block} cut {group=} of {depth=}")
  most = min(32, group // 2)
  words, units = decode.units(block, bits, most) if most else (0, ())
  if words < 8 or bits[0] not in (2, 3, 4, 8):
    raise NotImplementedError(f"no units in {depth=} {bits=} {group=}")
  if config is None:
    config = _division(tuned.key(rows, w, terms))
  return kernel.Plan(
    bits=bits,
    block=block,
    blocks=depth // block,
    words=words,
    parts=units,
    group=group,
    terms=0 if uniform else terms,
    columns=columns,
    rows=config.rows,
    warps=config.warps,
    stages=config.stages,
    splits=min(config.splits, depth // block),
    interpret=interpret,
  )


def _parts(grid) -> tuple[Any, ...]:
  """The grid of each label."""
  return grid.grids if isinstance(grid, grids.Labelled) else (grid,)


@functools.partial(jax.jit, static_argnums=0)
def _matmul(plan: kernel.Plan, x: Array, w: qtensor.QTensor) -> Array:
  rows = x.shape[0]
  x = jnp.pad(x, ((0, tuned.padded(rows) - rows), (0, 0)))
  words = tuple(plane.words for plane in form.planes(w))
  if plan.terms:
    return _call(plan, x, words, (_tables(plan, w.grid),))[:rows]
  span = plan.span if plan.grouped else plan.group
  sums = x.astype(jnp.float32).reshape(x.shape[0], -1, span).sum(2)
  shape = (w.shape[0] // plan.group, plan.columns)
  scale, zero = (
    jnp.broadcast_to(a.astype(jnp.float32), shape)
    for a in (w.grid.scale, w.grid.zero)
  )
  lift = zero + decode.bias(plan.bits[0])
  if plan.grouped:
    return _call(plan, x, words, (scale, lift, sums.T))[:rows]
  return ((_call(plan, x, words, ()) - sums * lift) * scale)[:rows]


def _tables(plan: kernel.Plan, grid: Any) -> Array:
  """Packed tables of a term after the other, `[.., N]` int32."""
  shape = (2 ** plan.bits[0], plan.columns)
  codes = jax.lax.broadcasted_iota(jnp.float32, shape, 0)
  values = jnp.concatenate([part.decode(codes) for part in _parts(grid)])
  out = []
  for _ in range(plan.terms):
    # Not a cast there and back, which XLA may leave out.
    term = jax.lax.reduce_precision(values, 8, 7)
    out.append(decode.packed_tables(term.astype(jnp.bfloat16)))
    values -= term
  return jnp.stack(out, axis=1).reshape(-1, plan.columns)


def _call(plan: kernel.Plan, x: Array, words: tuple, side: tuple) -> Array:
  tile, splits = plan.rows, plan.splits
  over = pl.BlockSpec((None, x.shape[0], tile), lambda n, s: (s, 0, n))

  def whole(a):
    return pl.BlockSpec(a.shape, lambda n, s: (0, 0))

  def tiled(a):
    return pl.BlockSpec((a.shape[0], tile), lambda n, s: (0, n))

  call = pl.pallas_call(
    functools.partial(kernel.body, plan),
    grid=(-(-plan.columns // tile), splits),
    in_specs=[
      whole(x),
      tuple(map(tiled, words)),
      (*map(tiled, side[:2]), *map(whole, side[2:])),
    ],
    out_specs=over,
    out_shape=jax.ShapeDtypeStruct(
      (splits, x.shape[0], plan.columns), jnp.float32
    ),
    compiler_params=pltriton.CompilerParams(
      num_warps=plan.warps, num_stages=plan.stages
    ),
    interpret=plan.interpret,
    name=f"matmul_{'_'.join(map(str, plan.bits))}bit",
  )
  return call(x, words, side).sum(0)
