"""Laws of chips: persistence, subsets, columns, directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.experiments.faults import bit_errors, chips
from tests import draws

WORDS = chips.ROWS * chips.COLUMNS // 32
SHAPE = (2, WORDS)  # two arrays of 512 x 64 bits


@functools.partial(jax.jit, static_argnums=0)
def _damaged(kind, stored, rate, seed, offset=0):
  chip = kind(rate, arrays=2)
  return chips.damage(stored, chip, seed, offset=offset)


def _wrong(kind, stored, rate, seed=0, offset=0):
  """The wrong bits as a plane `[arrays, rows, columns]`."""
  words = jnp.full(SHAPE, stored, jnp.uint32)
  found = np.asarray(_damaged(kind, words, rate, seed, offset) ^ words)
  bits = (found[..., None] >> np.arange(32)) & 1
  return bits.reshape(2, chips.ROWS, chips.COLUMNS).astype(bool)


ZEROS, ONES, HALF = 0, 0xFFFFFFFF, 0x55555555


@pytest.mark.parametrize("kind", [chips.uniform, chips.columns])
def test_laws(kind):
  assert not _wrong(kind, HALF, 0.0).any()
  few, many = _wrong(kind, HALF, 0.01), _wrong(kind, HALF, 0.05)
  assert not (few & ~many).any()
  np.testing.assert_array_equal(few, _wrong(kind, HALF, 0.01))
  other = _wrong(kind, HALF, 0.01, seed=1)
  assert np.sum(few & other) < 0.5 * np.sum(few)
  # As many errors as asked for, where as many 0 as 1 are stored.
  for rate, found in ((0.01, few), (0.05, many)):
    assert found.mean() == pytest.approx(rate, rel=0.1)


def test_errors_of_a_uniform_chip_are_everywhere():
  wrong = _wrong(chips.uniform, HALF, 0.05)
  share = wrong.mean(axis=1)
  spread = np.sqrt(0.05 * 0.95 / chips.ROWS)
  assert np.abs(share - 0.05).max() < 5 * spread
  zeros, ones = (_wrong(chips.uniform, x, 0.05) for x in (ZEROS, ONES))
  np.testing.assert_array_equal(zeros, ones)


def test_errors_of_a_columns_chip_gather():
  wrong = _wrong(chips.columns, HALF, 0.05)
  per_column = np.sort(wrong.sum(axis=1).ravel())[::-1]
  weak = per_column.size // 8
  assert per_column[:weak].sum() / wrong.sum() == pytest.approx(0.9, abs=0.03)
  # A flip to 1 is four times as frequent.
  rising, falling = (_wrong(chips.columns, x, 0.01) for x in (ZEROS, ONES))
  assert rising.sum() / falling.sum() == pytest.approx(4, rel=0.25)


def test_a_tree_lies_in_the_memory_from_its_offset_on():
  # 64 cells further is a row further, in the same columns.
  first, later = (
    _wrong(chips.columns, ZEROS, 0.05, offset=offset) for offset in (0, 64)
  )
  np.testing.assert_array_equal(first.reshape(-1)[64:], later.reshape(-1)[:-64])
  # Behind the last array comes the first again.
  np.testing.assert_array_equal(first.reshape(-1)[:64], later.reshape(-1)[-64:])
  # Leaf after leaf: a tree of pieces is hit as the whole is.
  words = jnp.zeros(SHAPE, jnp.uint32)
  pieces = {"a": words[0], "b": (words[1].astype(jnp.uint32),)}
  found = _damaged(chips.columns, pieces, 0.05, 0)
  whole = _damaged(chips.columns, words, 0.05, 0)
  np.testing.assert_array_equal(found["a"], whole[0])
  np.testing.assert_array_equal(found["b"][0], whole[1])


def test_scores():
  w = draws.normal((40, 8))
  params = {"w": ql.quantize(ql.rtn(8), w)}

  def predict(tree):
    return bit_errors.classes(tree["w"].dequantize())

  found = chips.evaluate(
    predict,
    params,
    jnp.argmax(w, axis=1),
    [0.0, 0.05],
    kind=functools.partial(chips.columns, arrays=2),
    offsets=range(0, 50_000, 10_000),
    protect=("grid",),
  )
  assert found.alone.highest[0] == found.clean == 0
  assert 0 < found.alone.mean[1] < 0.6


def test_protected_parts_and_other_types():
  q = ql.quantize(ql.rtn(8), draws.normal((40, 8)))
  tree = {"w": q, "flag": jnp.array(True)}

  @jax.jit
  def damage(tree):
    return chips.damage(tree, chips.uniform(1.0), 0, protect=("codes",))

  found = damage(tree)
  np.testing.assert_array_equal(found["w"].codes.words, q.codes.words)
  assert not np.any(found["w"].grid.scale == q.grid.scale)
  assert not found["flag"]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: chips.uniform(1.5), r"rate is in \[0, 1\]"),
    (lambda: chips.columns(0.2), "2.304 in the worst cells"),
    (lambda: chips.columns(0.01, weak=0.0), "chip.weak=0.0"),
    (lambda: chips.columns(0.01, rising=1.2), "chip.rising=1.2"),
    (
      lambda: chips.damage({}, chips.uniform(0.0), 0, protect=("scale",)),
      r"unknown parts \['scale'\]",
    ),
  ],
)
def test_refuses_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
