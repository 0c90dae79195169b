"""The kernel of `triton.matmul`.

Shape letters: M rows of activations, K contraction, N outputs, T outputs of a
tile, U words of a unit.
"""

from collections.abc import Iterator
import dataclasses
import functools
import itertools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
import jax.numpy as jnp

from quantlab.kernels import triton_decode as decode

Array = jax.Array

JOINED = 32
"""Words of an operand, where a unit has fewer: fewer loads and products."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static.

  Attributes:
    bits: of a code, and of a label if there are labels.
    block: codes of a block.
    blocks: how many.
    words: of a unit.
    parts: the units of a block.
    group: codes that share a scale; K where the scale is applied outside.
    terms: bf16 numbers that a value is the sum of; 0 for uniform codes.
    columns: N.
    rows: T.
    warps: of a program.
    stages: of its loads.
    splits: programs that share the blocks.
    interpret: whether to do without assembly.
  """

  bits: tuple[int, ...]
  block: int
  blocks: int
  words: int
  parts: tuple[decode.Unit, ...]
  group: int
  terms: int
  columns: int
  rows: int
  warps: int
  stages: int
  splits: int
  interpret: bool

  @property
  def grouped(self) -> bool:
    """Whether sums are scaled inside."""
    return self.group < self.block * self.blocks

  @property
  def span(self) -> int:
    """Codes that are summed by the tensor core alone."""
    return min(self.group, self.block)


def body(plan: Plan, x_ref: Any, word_refs: Any, side_refs: Any, o_ref: Any):
  """One tile of one split.

  Args:
    plan: what is static.
    x_ref: `[M, K]` bf16.
    word_refs: of each plane `[W, T]` uint32.
    side_refs: scales and what is added to codes, `[G, T]`, and sums of x,
      `[K / span, M]`, if grouped; the tables, `[.., T]`, if there are tables.
    o_ref: `[M, T]` float32.
  """
  per = -(-plan.blocks // plan.splits)
  first = pl.program_id(1) * per
  last = jnp.minimum(first + per, plan.blocks)
  # Read here: interpreted, a loop cannot ask for it.
  left = plan.columns - pl.program_id(0) * plan.rows
  load = functools.partial(_load, plan, left)
  tables = []
  if plan.terms:
    [ref] = side_refs
    tables = [load(ref, i, 1) for i in range(ref.shape[0])]

  def step(i, acc):
    for place, operands in _spans(
      plan, _words(plan, load, word_refs, i), tables
    ):
      part = jnp.zeros_like(acc)
      for start, values in operands:
        at = pl.ds(i * plan.block + start, values.shape[1])
        part += jnp.dot(
          values, x_ref[:, at].T, preferred_element_type=jnp.float32
        )
      if plan.grouped:
        at = i * plan.block + place
        acc = _scaled(plan, load, acc, part, at, *side_refs)
      else:
        acc += part
    return acc

  acc = jnp.zeros((plan.rows, x_ref.shape[0]), jnp.float32)
  acc = jax.lax.fori_loop(first, last, step, acc)
  mask = _valid(plan, left, (x_ref.shape[0], plan.rows))
  pltriton.store(o_ref.at[:, :], _in_order(plan, acc).T, mask=mask)


def _spans(
  plan: Plan, words: dict[tuple[int, int], Array], tables: list[Array]
) -> Iterator[tuple[int, Iterator[tuple[int, Array]]]]:
  """Where parts that share a scale begin, and their operands."""
  if plan.terms:
    yield 0, _found(plan, words, tables)
    return
  for place in range(0, plan.block, plan.span):
    parts = [u for u in plan.parts if place <= u.start < place + plan.span]
    yield place, _uniform(plan, words, parts)


def _uniform(plan, words, parts):
  many = max(1, min(JOINED // plan.words, len(parts)))
  for i in range(0, len(parts), many):
    values = [
      decode.integers(words, unit, plan.bits[0], plan.interpret)
      for unit in parts[i : i + many]
    ]
    yield parts[i].start, decode.concatenate(values)


def _found(plan, words, tables):
  fours = decode.together(plan.bits[0], plan.parts)
  # Units of two fours are neighbours, as far as registers allow.
  many = max(1, JOINED // 2 // plan.words)
  for batch in (fours[i : i + many] for i in range(0, len(fours), many)):
    for term in range(plan.terms):
      table = tables[term :: plan.terms]
      values = {}
      for four in batch:
        found = decode.lookup(words, four, table, plan.interpret)
        values |= {u.start: v for u, v in zip(four, found, strict=True)}
      starts = sorted(values)
      apart = min(b - a for a, b in itertools.pairwise(starts))
      size = many if apart == 2 * plan.words else 1
      for j in range(0, len(starts), size):
        near = [values[start] for start in starts[j : j + size]]
        yield starts[j], decode.concatenate(near)


def _scaled(plan, load, acc, part, at, scale_ref, lift_ref, sums_ref):
  """`scale * (part - lift * sums)` of the span that begins at k = at."""
  group = jax.lax.div(at, plan.group)
  scale, lift = (load(ref, group, 1) for ref in (scale_ref, lift_ref))
  sums = sums_ref[pl.ds(jax.lax.div(at, plan.span), 1), :]
  return decode.fma(
    decode.fma(-lift, sums, part, plan.interpret), scale, acc, plan.interpret
  )


def _words(
  plan: Plan, load: Any, refs: Any, i: Array
) -> dict[tuple[int, int], Array]:
  """`[T, U]` int32 words of block i, by plane and place in the block."""
  places = {
    (field.plane, field.word) for unit in plan.parts for field in unit.fields
  }
  out = {}
  for plane, word in sorted(places):
    at = i * (plan.block * plan.bits[plane] // 32) + word
    words = load(refs[plane], at, plan.words)
    out[plane, word] = jax.lax.bitcast_convert_type(words, jnp.int32)
  return out


def _load(plan: Plan, left: Array, ref: Any, start: Any, size: int) -> Array:
  """`[T, size]` of `[.., T]`, in the kernel's order of rows."""
  view = ref.at[pl.ds(start, size), :]
  mask = _valid(plan, left, (size, plan.rows))
  other = None if mask is None else 0
  tile = pltriton.load(view, mask=mask, other=other)
  # A thread of a product has every 8th row: these are neighbours in memory.
  tile = tile.reshape(size, plan.warps, 8, -1, 2).transpose(3, 1, 4, 2, 0)
  return tile.reshape(plan.rows, size)


def _in_order(plan: Plan, acc: Array) -> Array:
  """The inverse for `[T, M]`."""
  acc = acc.reshape(-1, plan.warps, 2, 8, acc.shape[1])
  return acc.transpose(1, 3, 0, 2, 4).reshape(plan.rows, -1)


def _valid(plan: Plan, left: Array, shape: tuple[int, int]) -> Array | None:
  """Which elements of `[.., T]` there are, the first `left`; None if all."""
  if plan.columns % plan.rows == 0:
    return None
  return jax.lax.broadcasted_iota(jnp.int32, shape, 1) < left
