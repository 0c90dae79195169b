"""The program of `mosaic_tpu.matmul`.

Shape letters: M rows of activations, K contraction, N output, E codes of a row.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

from quantlab.kernels import mosaic_tpu_decode as decode

Array = jax.Array
Ref = Any


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a program knows of a weight and of its tile.

  Attributes:
    size: K.
    groups: G.
    bits: of a code.
    label_bits: of a label, 0 where there are none.
    terms: bfloat16 numbers of a value.
    tile: codes of a tile along K.
    align: groups of a tile are fetched alone where this divides them.
  """

  size: int
  groups: int
  bits: int
  label_bits: int
  terms: int
  tile: int
  align: int

  @property
  def group(self) -> int:
    """Codes of a group."""
    return self.size // self.groups

  @property
  def fetched(self) -> int:
    """Groups that a program fetches: those of its tile, or else all."""
    own, rest = divmod(self.tile, self.group)
    return self.groups if rest or own % self.align else min(own, self.groups)

  def row(self, k: Array, code: int) -> Array:
    """Where, of what is fetched, the group of a code of tile k is."""
    if self.fetched == self.groups:
      first, group = 0, jax.lax.div(k * self.tile + code, self.group)
    else:
      first = k * self.fetched
      group = first + code // self.group
    # Past the end any will do: activations are 0 there.
    return jnp.minimum(group, self.groups - 1) - first


def program(product: Any, plan: Plan, x: Ref, *refs: Ref) -> None:
  """Adds a tile's product to the output, where K goes on.

  Args:
    product: `uniform` or `tabled`.
    plan: of the weight.
    x: a tile of activations.
    *refs: tiles of the weight, then of the output.
  """
  *weights, out = refs
  k = pl.program_id(2)

  @pl.when(k == 0)
  def _():
    out[...] = jnp.zeros_like(out)

  out[...] += product(plan, x, k, *weights)


def uniform(
  plan: Plan, x: Ref, k: Array, codes: Ref, scale: Ref, zero: Ref
) -> Array:
  """A tile's product `[M, N]` with codes of a uniform grid."""
  rows = x.shape[0]
  span = math.gcd(plan.group, plan.tile)  # what is scaled together
  unit = math.gcd(max(span, 128), decode.STEP)  # what is multiplied together
  parts = max(1, unit // span)
  total = jnp.zeros((rows, codes.shape[1]), jnp.float32)
  products, sums = 0.0, 0.0
  for step in range(0, plan.tile, decode.STEP):
    fields = decode.fields(codes, step, plan.bits, plan.size)
    numbers, first, by = decode.numbers(fields, plan.bits)
    for at in range(0, decode.STEP, unit):
      some = _apart(x[:, step + at : step + at + unit], parts)
      products += _dot(some, numbers[at : at + unit])
      sums += jnp.sum(some.astype(jnp.float32), axis=1, keepdims=True)
      end = step + at + unit
      if end % span:
        continue
      for part in range(parts):
        row = pl.ds(plan.row(k, end + (part - parts) * span), 1)
        own = slice(part * rows, (part + 1) * rows)
        above = products[own] - sums[own] * (first + by * zero[row, :])
        total += above * (scale[row, :] / by)
      products, sums = 0.0, 0.0
  return total


def _apart(x: Array, parts: int) -> Array:
  """Rows for each part along K, 0 outside it: `[M, E]` to `[parts * M, E]`."""
  if parts == 1:
    return x
  column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  part = column // (x.shape[1] // parts)
  zeros = jnp.zeros_like(x)
  return jnp.concatenate([jnp.where(part == i, x, zeros) for i in range(parts)])


def tabled(
  plan: Plan, x: Ref, k: Array, codes: Ref, *labels_and_table: Ref
) -> Array:
  """A tile's product `[M, N]` with values from a table."""
  *labels, table = labels_and_table
  unit = math.gcd(plan.group, decode.STEP)
  total = jnp.zeros((x.shape[0], codes.shape[1]), jnp.float32)
  for step in range(0, plan.tile, decode.STEP):
    fields = decode.fields(codes, step, plan.bits, plan.size)
    for plane in labels:
      above = decode.fields(plane, step, plan.label_bits, plan.size)
      fields = decode.labelled(fields, plan.bits, above, plan.label_bits)
    low, high = decode.halves(fields, plan.bits + plan.label_bits)
    terms = [[] for _ in range(plan.terms)]
    for at in range(0, decode.STEP, unit):
      own = slice(at // 2, (at + unit) // 2)
      values = table[plan.row(k, step + at)]
      values = jnp.split(values, 2 * plan.terms)
      for term, lows, highs in zip(
        terms, values[::2], values[1::2], strict=True
      ):
        term.append(
          decode.look_up(lows, low[own]) | decode.look_up(highs, high[own])
        )
    some = x[:, step : step + decode.STEP]
    total += sum(
      _dot(some, decode.rows(jnp.concatenate(term))) for term in terms
    )
  return total


def _dot(x: Array, w: Array) -> Array:
  return jnp.dot(x, w, preferred_element_type=jnp.float32)
