"""Bit errors in stored arrays: their numbers, and what they leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base, flips
from tests import draws

KEY = jax.random.key(0)


def _even(rows, weight, levels):
  """A table that costs nothing to compile."""
  del weight
  return jnp.max(rows, axis=1)[:, None] * jnp.linspace(-1, 1, levels)[None]


def _thirds(x, mask):
  """Labels that cost nothing to compile."""
  del mask
  return (x > -0.4).astype(jnp.uint8) + (x > 0.4)


# Of few shapes: each array of another shape is another program.
QUANTIZERS = {
  "rtn": ql.rtn(2),
  "lloyd": ql.lloyd(2, fitter=_even),
  "icquant": ql.icquant(ql.rtn(2), ratio=0.1, shuffle=True),
  "splitquant": ql.split(ql.branches(_thirds, 3), *[ql.rtn(2)] * 3),
  "clusterquant": ql.label(_thirds, *[ql.rtn(2)] * 3),
  "easyquant": ql.easyquant(2, sigmas=2.5, steps=1),
  "cfws": ql.cfws(2),
  "floats": ql.keep(),
}
ALL = pytest.mark.parametrize("name", QUANTIZERS)


@functools.cache
def _stored(name):
  shape = (3, 3, 8, 8) if name == "cfws" else (64, 8)
  return ql.quantize(QUANTIZERS[name], draws.normal(shape))


def _bytes(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _damaged(name, rate, protect=(), key=KEY):
  return flips.flip_bits(_stored(name), rate, key, protect=protect)


def _count(masks):
  return int(np.bitwise_count(np.asarray(masks)).sum())


def test_errors_at_a_lower_rate_are_among_those_at_a_higher_one():
  below = np.zeros(3000, np.uint32)
  for rate in (0.0, 1e-4, 0.001, 0.01, 0.1, 0.5, 1.0):
    masks = np.asarray(flips.flips(KEY, (3000,), rate, 8))
    assert not np.any(below & ~masks)
    below = masks
  assert np.all(below == 255)


@pytest.mark.parametrize("rate", [1e-3, 0.01, 0.2])
def test_every_bit_has_the_rate(rate):
  masks = np.asarray(flips.flips(KEY, (20_000,), rate))
  for bit in range(32):
    found = np.mean(masks >> bit & 1)
    assert abs(found - rate) < 4 * (rate * (1 - rate) / masks.size) ** 0.5
  spread = (rate * (1 - rate) / masks.size / 32) ** 0.5
  assert abs(_count(masks) / masks.size / 32 - rate) < 4 * spread


def test_bits_are_independent():
  # Errors in a group of 512 bits, whose processes run together: binomial.
  masks = np.asarray(flips.flips(KEY, (20_000,), 0.05))[: flips.WORDS]
  counts = np.bitwise_count(masks).reshape(flips.GROUP, -1).sum(axis=0)
  assert np.mean(counts) == pytest.approx(512 * 0.05, abs=0.6)
  assert np.var(counts) == pytest.approx(512 * 0.05 * 0.95, rel=0.2)


def test_rates_in_one_program_and_out_of_range():
  masks = jax.jit(lambda rate: flips.flips(KEY, (3000,), rate, 8))
  np.testing.assert_array_equal(masks(0.01), flips.flips(KEY, (3000,), 0.01, 8))
  for rate in (-0.1, 1.5, np.nan):
    with pytest.raises(ValueError, match=r"in \[0, 1\], got rate="):
      flips.flips(KEY, (3,), rate)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got rate="):
      flips.flip_bits(jnp.ones(3), rate, KEY)


@pytest.mark.parametrize("bits", [5, 12])
def test_unused_bits_never_change(bits):
  masks = np.asarray(flips.flips(KEY, (30, 100), 0.5, bits))
  assert masks.dtype == np.uint32
  assert np.max(masks) < 2**bits
  expected = masks.size * bits / 2
  assert abs(_count(masks) - expected) < 4 * (expected / 2) ** 0.5


def test_chunks_have_errors_of_their_own(monkeypatch):
  monkeypatch.setattr(flips, "WORDS", 64)
  x = jnp.zeros(200, jnp.float32)  # three chunks and a rest
  bad = np.asarray(flips.flip_bits(x, 0.5, KEY)).view(np.uint32)
  chunks = np.array_split(bad, [64, 128, 192])
  assert [len(c) for c in chunks] == [64, 64, 64, 8]
  for chunk in chunks:
    assert abs(_count(chunk) / chunk.size / 32 - 0.5) < 0.13
  for other in chunks[1:3]:
    assert np.mean(other == chunks[0]) < 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "bool"])
def test_every_type_of_array(dtype):
  x = draws.normal((33, 31)).astype(dtype)
  bad = flips.flip_bits(x, 0.5, KEY)
  assert (bad.shape, bad.dtype) == (x.shape, x.dtype)
  assert _bytes(flips.flip_bits(bad, 0.5, KEY)) == _bytes(x)
  wrong = np.asarray(x).view(np.uint8) ^ np.asarray(bad).view(np.uint8)
  used = 1 if dtype == "bool" else 8
  share = _count(wrong) / wrong.size / used
  assert abs(share - 0.5) < 4 * (0.25 / wrong.size / used) ** 0.5


@pytest.mark.parametrize("dtype", [jnp.int4, jnp.complex64])
def test_refuses_types_whose_bits_are_not_in_bytes(dtype):
  with pytest.raises(ValueError, match="cannot flip bits of"):
    flips.flip_bits(jnp.zeros(3, dtype), 0.1, KEY)


@ALL
def test_damaged_trees_dequantize(name):
  clean = _stored(name)
  for rate in (0.01, 0.5):
    bad = _damaged(name, rate)
    assert jax.tree.structure(bad) == jax.tree.structure(clean)
    assert ql.dequantize(bad).shape == clean.shape
    # What is without errors, scales and floats, keeps it finite.
    bad = _damaged(name, rate, protect=("grid", "exact", "float"))
    assert np.isfinite(ql.dequantize(bad)).all()


@ALL
def test_the_same_errors_twice_are_none(name):
  clean = _stored(name)
  assert _bytes(_damaged(name, 0.0)) == _bytes(clean)
  bad = _damaged(name, 0.1)
  assert _bytes(bad) != _bytes(clean)
  assert _bytes(bad) == _bytes(_damaged(name, 0.1))
  assert _bytes(flips.flip_bits(bad, 0.1, KEY)) == _bytes(clean)


@ALL
def test_protection_leaves_a_part_alone_and_no_other(name):
  clean, bad = _bytes(_stored(name)), _bytes(_damaged(name, 0.5))
  count = flips.parts(_stored(name))
  assert sum(count.values()) == ql.nbits(_stored(name))
  for part in flips.PARTS:
    safe = _bytes(_damaged(name, 0.5, protect=(part,)))
    kept = [i for i, leaf in enumerate(safe) if leaf != bad[i]]
    assert [safe[i] for i in kept] == [clean[i] for i in kept]
    assert bool(kept) == bool(count[part])
  assert _bytes(_damaged(name, 0.5, protect=flips.PARTS)) == clean


def test_parts():
  found = {name: flips.parts(_stored(name)) for name in QUANTIZERS}
  present = {
    name: {part for part, bits in count.items() if bits}
    for name, count in found.items()
  }
  assert present == {
    "rtn": {"codes", "grid"},
    "lloyd": {"codes", "grid"},
    "icquant": {"codes", "grid", "index"},
    "splitquant": {"codes", "grid"},
    "clusterquant": {"codes", "grid", "labels"},
    "easyquant": {"codes", "grid", "index", "exact"},
    "cfws": {"codes", "grid"},
    "floats": {"float"},
  }
  assert found["rtn"]["codes"] == 2 * 64 * 8
  q = _stored("icquant")
  symbols = 32 * q.grid.labels.symbols.words.size
  assert found["icquant"]["index"] == symbols + 8
  q = _stored("easyquant").parts[1]
  assert found["easyquant"]["index"] == found["easyquant"]["exact"]
  assert found["easyquant"]["exact"] == 32 * q.values.size


def test_names_of_a_tree_are_not_parts():
  tree = {"codes": {"grid": jnp.ones(3)}, "w": _stored("rtn")}
  assert flips.parts(tree)["float"] == 96
  shapes = jax.eval_shape(lambda: tree)
  assert flips.parts(shapes) == flips.parts(tree)


def test_unknown_parts():
  with pytest.raises(ValueError, match=r"unknown parts \['scale'\]; there are"):
    flips.flip_bits(jnp.ones(3), 0.1, KEY, protect=("scale", "grid"))


def test_fields_of_unknown_meaning():
  @base.pytree
  class Odd:
    dial: jax.Array

    def dequantize(self):
      return self.dial

  with pytest.raises(ValueError, match=r"the array \.dial of"):
    flips.parts({"w": Odd(jnp.ones(2))})


def test_leaves_have_errors_of_their_own():
  bad = flips.flip_bits([jnp.zeros(100)] * 2, 0.5, KEY)
  first, second = (np.asarray(x).view(np.uint32) for x in bad)
  assert np.mean(first == second) < 0.1


def test_under_jit_and_vmap():
  q = _stored("rtn")
  keys = jax.random.split(KEY, 3)

  @jax.jit
  def chips(keys, rate):
    return jax.vmap(lambda key: flips.flip_bits(q, rate, key))(keys)

  damaged = jax.tree.leaves(chips(keys, 0.01))
  for i, key in enumerate(keys):
    bad = [np.asarray(leaf)[i].tobytes() for leaf in damaged]
    assert bad == _bytes(flips.flip_bits(q, 0.01, key))


def test_indices_outside_are_dropped():
  q = _stored("easyquant").parts[1]
  everywhere = flips.flip_bits(q, 1.0, KEY, protect=("exact",))
  assert np.min(np.asarray(everywhere.index)) > 2**31
  assert not np.any(everywhere.dequantize())
