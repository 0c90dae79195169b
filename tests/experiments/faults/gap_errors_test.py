"""How far a wrong bit of the gap code reaches, by rows of a stream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import grids, sparse
from quantlab.experiments.faults import bit_errors, gap_errors


@functools.cache
def _labels(shuffled):
  """128 rows of 120 elements, 6 of which are marked."""
  rng = np.random.default_rng(0)
  at = np.sort([rng.choice(120, 6, replace=False) for _ in range(128)])
  marks = sparse.Marks(jnp.asarray(at, jnp.int32), (-2,), (120,))
  return sparse.GapCoded.encode(marks, 5, shuffled).trim()


@pytest.mark.parametrize("shuffled", [False, True])
def test_streams_hold_the_same_labels(shuffled):
  labels = _labels(shuffled)
  sizes = []
  for rows in (128, 1):
    coded = gap_errors.streams(labels, rows)
    assert coded.symbols.shape[0] == 128 // rows
    plane = jax.jit(lambda coded=coded: gap_errors.plane(coded, coded.symbols))
    np.testing.assert_array_equal(plane(), labels.unpack())
    sizes.append(coded.nbits)
  assert sizes == sorted(sizes)
  # As stored, but for the flag and the padding of the last word.
  assert 0 <= ql.nbits(labels) - 8 - sizes[0] < 96


def test_damage_ends_with_the_stream():
  joint, own = (gap_errors.streams(_labels(False), rows) for rows in (128, 1))
  found = {
    coded.symbols.shape[0]: gap_errors.reach(coded, samples=60)
    for coded in (joint, own)
  }
  assert found[128].rows.max() == 1
  assert found[1].rows.max() > 8
  # Each row has 6 marks: as many may be lost as are gained.
  assert found[128].weights.max() <= 12
  assert found[1].weights.mean() > 5 * found[128].weights.mean()
  means = gap_errors.mean_reach([own, own], samples=60)
  assert means["most"] == found[128].weights.max()
  assert means["weights_per_bit"] == pytest.approx(found[128].weights.mean())


def test_damage_of_many_bits():
  codes = jnp.zeros((120, 128), jnp.uint8)
  q = ql.QTensor(codes, grids.Labelled(_labels(False), ()), jnp.float32)

  def labels(damage, rates):
    def plane(tree):
      stored = tree["w"].grid.labels
      return stored.unpack() if hasattr(stored, "unpack") else stored

    clean, found = bit_errors.under(damage, plane, {"w": q}, rates, [0, 1])
    return (found != clean).mean(axis=(1, 2, 3))

  rates = [0.0, 0.01]
  joint, own, voted = (
    labels(gap_errors.damage({"w": q}, *remedy), rates)
    for remedy in ((128, 1), (1, 1), (128, 3))
  )
  assert joint[0] == own[0] == voted[0] == 0
  assert joint[1] > 2 * own[1] > 0
  assert joint[1] > 2 * voted[1]
  # Streams as they are stored are hit as the stored symbols are.
  stored = labels(bit_errors.random(("codes", "grid")), rates)
  assert 0.3 < stored[1] / joint[1] < 3


def test_refuses_bad_input():
  with pytest.raises(ValueError, match="rows=0"):
    gap_errors.streams(_labels(False), 0)
  with pytest.raises(ValueError, match="copies=2"):
    gap_errors.damage({}, 1, copies=2)
