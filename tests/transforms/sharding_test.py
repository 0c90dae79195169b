"""Sharded weights stay sharded: eight virtual devices."""

import re

import jax
import numpy as np
import pytest

import quantlab as ql
from quantlab.transforms import plan
from tests import draws

Spec = jax.sharding.PartitionSpec
K, N = 2048, 1024
COLUMNS, ROWS = Spec(None, "x"), Spec("x", None)

METHODS = {
  "rtn": ql.rtn(3),
  "rtn_block": ql.rtn(4, granularity=ql.per_block(0, 128)),
  "lloyd": ql.lloyd(2),
  "icquant": ql.icquant(ql.rtn(2)),
  "easyquant": ql.easyquant(4, steps=3),
}


def _sharded(spec):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
  w = draws.normal((K, N))
  return jax.device_put(w, jax.sharding.NamedSharding(mesh, spec))


def _gathered(quantizer, w):
  """Elements of the largest array that any device receives from others."""
  program = plan._deployed(quantizer).lower(w, None).compile().as_text()
  pattern = r"= \w+\[([\d,]+)\]\S* (?:all-gather|all-to-all)"
  found = re.findall(pattern, program)
  return max(
    (int(np.prod([int(n) for n in f.split(",")])) for f in found), default=0
  )


@pytest.mark.parametrize(
  "name",
  [
    "rtn",
    "rtn_block",
    pytest.param("lloyd", marks=pytest.mark.study),
    "icquant",
    "easyquant",
  ],
)
def test_column_shards_stay_and_nothing_is_gathered(name):
  w = _sharded(COLUMNS)
  # A weight has 2 M elements; places (row, column) of outliers are 15 % of it.
  assert _gathered(METHODS[name], w) <= 0.16 * w.size
  q = ql.quantize(METHODS[name], w)
  part = q.parts[0] if isinstance(q, ql.Sum) else q
  words = part.codes.words
  assert words.sharding.is_equivalent_to(w.sharding, words.ndim)
  alone = ql.quantize(METHODS[name], jax.device_get(w))
  np.testing.assert_allclose(
    q.dequantize(), alone.dequantize(), rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize("name", ["rtn", "rtn_block"])
def test_row_shards(name):
  w = _sharded(ROWS)
  assert _gathered(METHODS[name], w) == 0
  q = ql.quantize(METHODS[name], w)
  assert q.codes.words.sharding.is_equivalent_to(w.sharding, 2)
  alone = ql.quantize(METHODS[name], jax.device_get(w))
  np.testing.assert_array_equal(q.dequantize(), alone.dequantize())
