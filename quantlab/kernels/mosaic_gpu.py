"""Packed weights on Hopper GPUs: a Pallas kernel of the Mosaic GPU backend.

A thread block computes `block_n` outputs of `block_m` rows. One warpgroup
copies to shared memory, the others share the outputs. A step is a block of B
codes (`quantlab.core.bits`). The tensor cores get the weights as their left
side, from registers (`mosaic_decode`), and the activations as the right one:

  out[n, m] += sum over k of codes[k, n] * x[m, k].

Codes, and products of codes with bfloat16, are exact; sums are float32. Scales
of groups multiply the sums of a group, within the kernel. Scales of whole
channels, zeros and the sum over splits of K are left to XLA.

Never run on a GPU so far. It compiles for Hopper, and `interpret=True` runs the
same cuts of the product, with plain operations in place of copies, loads into
registers, their order for `wgmma`, the PTX that decodes, and `wgmma` itself.

Shape letters: M rows of activations, K contraction, N output, G groups along K,
B codes and W words of a block, S splits of K.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from quantlab.core import bits as layout
from quantlab.core import grids, qtensor
from quantlab.kernels import form, mosaic_decode, planes

Array = jax.Array
Ref = Any

_AXES = ("n", "m", "s", "warpgroup")


@dataclasses.dataclass(frozen=True)
class Config:
  """How the product is cut.

  Attributes:
    block_n: outputs of a thread block; a multiple of 64 for each warpgroup.
    block_m: rows of a thread block, a multiple of 8 up to 256.
    stages: blocks of K in flight, at least 2.
    splits: S, thread blocks that share a sum over K.
    warpgroups: that compute; one more loads.
  """

  block_n: int = 128
  block_m: int = 16
  stages: int = 4
  splits: int = 1
  warpgroups: int = 2

  def __post_init__(self):
    if min(self.splits, self.warpgroups, self.stages - 1) < 1:
      raise ValueError(f"splits, warpgroups or stages too few: {self}")
    if self.block_n < 64 or self.block_n % (64 * self.warpgroups):
      raise ValueError(
        f"{self.block_n=} is not 64 for each warpgroup of {self}"
      )
    if not 8 <= self.block_m <= 256 or self.block_m % 8:
      raise ValueError(f"block_m is 8, 16, ... or 256, got {self.block_m=}")


def configure(m: int, k: int, n: int, bits: int, group: int) -> Config:
  """A configuration for a GPU of 132 processors, by rule; not measured.

  Example:
    >>> configure(16, 8192, 28672, bits=4, group=128)
    Config(block_n=256, block_m=16, stages=5, splits=1, warpgroups=2)
  """
  block, processors = layout.block_size(k), 132
  block_m = min(64, m + -m % 8)
  # Wide thread blocks read x less often; registers limit them.
  many = n % 256 == 0 and n // 256 >= processors // 2
  block_n = 256 if many and block_m <= 32 and bits <= 4 else 128
  held = block * (2 * block_m + block_n * bits // 8)  # bytes of a step
  held += 4 * block_n * max(1, block // group)
  tiles = -(-n // block_n) * -(-m // block_m)
  most = max(1, min(k // block, processors // tiles))
  splits = next(s for s in range(most, 0, -1) if k // block % s == 0)
  stages = max(2, min(8, 216 * 1024 // held))
  return Config(block_n, block_m, stages, splits)


@functools.partial(jax.jit, static_argnames=("config", "terms", "interpret"))
def matmul(
  x: Array,
  w: qtensor.QTensor,
  *,
  config: Config | None = None,
  terms: int = 1,
  interpret: bool = False,
) -> Array:
  """`x @ w.dequantize()` from packed words.

  Args:
    x: `[M, K]` bfloat16.
    w: `[K, N]`, codes of 2, 3, 4 or 8 bits packed along K, a multiple of 128
      (of 256 for 3 bits), on an `Affine` grid of `[G, N]` scales and zeros.
      Words are copied first where N is not a multiple of 128.
    config: how the product is cut; by default what `configure` says.
    terms: bfloat16 numbers to a value; here codes are values, so it is 1.
    interpret: runs on any platform, slowly.

  Returns:
    `[M, N]` float32.

  Raises:
    ValueError: shapes or types do not fit.
    NotImplementedError: another form of weight.
  """
  del terms  # of other grids
  form.check(x, w)
  group = _group(w)
  m, k, n = *x.shape, w.shape[1]
  config = config or configure(m, k, n, w.codes.bits, group)
  tile = _Tile(layout.block_size(k), w.codes.bits, group % k, config)
  if k // tile.block % config.splits:
    raise ValueError(f"{config.splits=} must divide {k // tile.block} blocks")
  scale, zero = w.grid.scale, w.grid.zero
  pad = (0, 0), (0, -n % config.block_n)
  inputs = [jnp.pad(x, ((0, -m % config.block_m), (0, 0)))]
  inputs += [jnp.pad(a, pad) for a in (w.codes.words, scale)]
  inputs = inputs if tile.group else inputs[:2]
  shape = config.splits, inputs[1].shape[1], inputs[0].shape[0]
  run = _interpreted if interpret else _compiled
  parts = run(tile, inputs, jax.ShapeDtypeStruct(shape, jnp.float32))
  out = parts.sum(0).T[:m, :n]
  sums = x.astype(jnp.float32).reshape(m, k // group, group).sum(2)
  offset = jnp.dot(sums, zero * scale, precision=jax.lax.Precision.HIGHEST)
  return (out if tile.group else out * scale) - offset


def _group(w: qtensor.QTensor) -> int:
  """Codes of K that share a scale."""
  codes, grid = w.codes, w.grid
  if not isinstance(grid, grids.Affine):
    raise NotImplementedError(f"no kernel for {type(grid).__name__}")
  k, n = w.shape
  cells = grid.scale.shape[0]
  if grid.scale.shape != (cells, n) or k % cells:
    raise ValueError(f"{grid.scale.shape=} does not divide {w.shape=}")
  block, group = layout.block_size(k), k // cells
  if codes.bits not in (2, 3, 4, 8):
    raise NotImplementedError(f"no kernel for {codes.bits=}")
  cut = group < k and (group % 16 or (block % group and group % block))
  if k % 128 or block * codes.bits // 32 % 8 or cut:
    raise NotImplementedError(f"{k=}, {group=} codes of {codes.bits} bits")
  return group


class _Tile(NamedTuple):
  """What a thread block computes in a step."""

  block: int  # B
  bits: int  # of a code
  group: int  # codes of K that share a scale; 0 where all do
  config: Config

  @property
  def blocks(self) -> list[tuple[tuple[int, int], Any]]:
    """Shapes of x, words and scales, and their places by n, m and step."""
    bm, bn = self.config.block_m, self.config.block_n
    words = layout.num_words(self.block, self.bits)
    scales = max(1, self.block // self.group) if self.group else 1
    shared = max(1, self.group // self.block)  # steps per scale
    return [
      ((bm, self.block), lambda n, m, k: (m, k)),
      ((words, bn), lambda n, m, k: (k, n)),
      ((scales, bn), lambda n, m, k: (jax.lax.div(k, jnp.int32(shared)), n)),
    ]

  @property
  def sums(self) -> list[list[planes.Run]]:
    """The runs of each sum that has its own scale."""
    return mosaic_decode.cut(self.block, self.bits, self.group or self.block)

  @property
  def swizzle(self) -> int:
    """Bytes of x that lie together: of as many k as fit into all runs."""
    words = math.gcd(*(run.words for runs in self.sums for run in runs))
    return math.gcd(4 * words, 128)


def _compiled(tile: _Tile, inputs: list[Array], out_type: Any) -> Array:
  """The kernel on a GPU: `[S, N, M]` float32."""
  c = tile.config
  steps = inputs[0].shape[1] // tile.block // c.splits

  def swizzled(lines, bits):
    tiling = plgpu.TilingTransform((8, 8 * lines // bits))
    return tiling, plgpu.SwizzleTransform(lines)

  transforms = swizzled(tile.swizzle, 16), swizzled(128, 32), ()

  def kernel(*refs):
    *inputs, out = refs
    n, m, s, group = (jax.lax.axis_index(name) for name in _AXES)
    part = c.block_n // c.warpgroups

    def spec(shape, place, by):
      return plgpu.BlockSpec(
        shape, lambda k: place(n, m, s * steps + k), transforms=by
      )

    def step(_, x, *refs) -> Any:
      *columns, total = refs
      mine = [ref.at[:, pl.ds(group * part, part)] for ref in columns]
      return _step(tile, False, total, x, *mine)

    def compute(pipeline):
      zeros = jnp.zeros((part, c.block_m), jnp.float32)
      total = pipeline(plgpu.layout_cast(zeros, plgpu.Layout.WGMMA))
      columns = pl.ds(n * c.block_n + group * part, part)
      out[s, columns, pl.ds(m * c.block_m, c.block_m)] = total

    specs = [spec(*block, transforms[i]) for i, block in enumerate(tile.blocks)]
    plgpu.emit_pipeline_warp_specialized(
      step,
      grid=(steps,),
      in_specs=specs[: len(inputs)],
      max_concurrent_steps=c.stages,
      num_compute_wgs=c.warpgroups,
      wg_axis=_AXES[-1],
      memory_registers=40,
      compute_context=compute,
    )(*inputs)

  splits, columns, rows = out_type.shape
  return plgpu.kernel(
    kernel,
    out_type=out_type,
    grid=(columns // c.block_n, rows // c.block_m, splits),
    grid_names=_AXES[:-1],
    num_threads=c.warpgroups + 1,
    thread_name=_AXES[-1],
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )(*inputs)


def _interpreted(tile: _Tile, inputs: list[Array], out_type: Any) -> Array:
  """What `_compiled` gives, step by step on any platform."""
  c = tile.config
  splits, columns, rows = out_type.shape
  steps = inputs[0].shape[1] // tile.block // splits

  def kernel(*refs):
    *inputs, out = refs
    total = jnp.where(pl.program_id(3) == 0, 0, out[0])
    out[0] = _step(tile, True, total, *inputs)

  def spec(shape, place):
    return pl.BlockSpec(shape, lambda n, m, s, k: place(n, m, s * steps + k))

  return pl.pallas_call(
    kernel,
    out_shape=out_type,
    grid=(columns // c.block_n, rows // c.block_m, splits, steps),
    in_specs=[spec(*block) for block in tile.blocks[: len(inputs)]],
    out_specs=pl.BlockSpec(
      (1, c.block_n, c.block_m), lambda n, m, s, k: (s, n, m)
    ),
    interpret=True,
  )(*inputs)


def _step(
  tile: _Tile, interpret: bool, total: Array, x: Ref, words: Ref, *scales: Ref
) -> Array:
  """Adds the products of a step to a total `[N, M]`."""

  @functools.cache
  def load(at, size):
    part = words.at[at : at + size]
    return mosaic_decode.load(part, mosaic_decode.WORDS, interpret)

  for j, runs in enumerate(tile.sums):
    # Here, as what is loaded within the scope of a sum stays there.
    pieces = [[load(p.word, run.words) for p in run.pieces] for run in runs]
    part = mosaic_decode.product(total.shape, runs, pieces, x, interpret)
    for ref in scales:
      row = plgpu.Layout.WGMMA.reduce(1)
      scale = mosaic_decode.load(ref.at[j], row, interpret)
      part *= jax.lax.broadcast_in_dim(scale, part.shape, (0,))
    total += part
  return total
