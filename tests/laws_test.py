"""One body of laws for every quantizer. A new method is one more `Case`."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import bits, gaps, grids, qtensor, sparse, stored
from tests import draws

K, N = 96, 20


class Case(NamedTuple):
  """A quantizer and what holds for it.

  Attributes:
    quantizer: of tensors.
    nbits: its closed form for a `[K, N]` kernel; takes the stored result for
      what depends on the data (the number of exact outliers, of gap symbols).
    idempotent: quantizing again changes nothing.
    random: needs a key.
    shape: of the weights.
    parts: weights to the tensors that the grid parts of the result are of.
    tolerance: of the same computation in another program. Adam's last steps
      amplify what rounding makes of a sum.
  """

  quantizer: Any
  nbits: Callable[[Any], int]
  idempotent: bool = True
  random: bool = False
  shape: tuple[int, ...] = (K, N)
  parts: Callable[[Any], list[Any]] = lambda w: [w]
  tolerance: float = 1e-5


def _affine(n, cells=N, zero_bits=32):
  codes = 32 * bits.num_words(K, n) * N
  return codes + cells * (32 + zero_bits)


def _gap_code(q):
  """Bits that the stream of gap symbols needs, from the positions alone."""
  labels = q.grid.labels
  labels = getattr(labels, "first", labels)
  positions = labels.decode().positions
  if labels.shuffled:
    positions = gaps.shuffle(positions, K)
  steps = np.diff(positions, axis=-1, prepend=-1)
  symbols = int(np.sum((steps - 1) // (2**labels.bits - 1) + 1))
  # A flag, and one stream.
  return 8 + 32 * bits.num_words(symbols, labels.bits)


def _branches(w):
  parts = ql.quantize(ql.splitquant(ql.keep()), w).parts
  return [part.dequantize() for part in parts]


def _coarse_and_fine(w):
  centre = w[1:2, 1:2]
  step = jnp.max(jnp.abs(centre), axis=2, keepdims=True) / 127
  step = jnp.where(step > 0, step, 1)
  coarse = jnp.floor(centre / step + 0.5) * step
  return [coarse, w.at[1:2, 1:2].add(-coarse)]


# 20 labels of three to a word.
DIGITS = 32 * -(-K // 20) * N
CONV = (3, 3, 8, N)


def _exact(q):
  return 64 * q.parts[-1].values.size


CASES = {
  **{f"rtn{n}": Case(ql.rtn(n), lambda q, n=n: _affine(n)) for n in (2, 3, 8)},
  "rtn4_symmetric": Case(
    ql.rtn(4, symmetric=True), lambda q: 4 * K * N + 32 * N + 8
  ),
  # The largest magnitude is clipped to 7 of 7.5, and again the next time.
  "rtn4_full_range": Case(
    ql.rtn(4, symmetric=True, narrow=False),
    lambda q: 4 * K * N + 32 * N + 8,
    idempotent=False,
  ),
  "rtn3_float16": Case(
    ql.rtn(3, dtype=jnp.float16),
    lambda q: 3 * K * N + 32 * N,
    idempotent=False,
  ),
  "rtn4_block": Case(
    ql.rtn(4, granularity=ql.per_block(0, 32)), lambda q: _affine(4, 3 * N)
  ),
  "rtn4_tensor": Case(
    ql.rtn(4, granularity=ql.per_tensor), lambda q: _affine(4, 1)
  ),
  "percentile": Case(
    ql.rtn(4, estimator=ql.percentile(98.0)),
    lambda q: _affine(4),
    idempotent=False,
  ),
  "mse": Case(
    ql.rtn(3, estimator=ql.mse), lambda q: _affine(3), idempotent=False
  ),
  "int4_signed": Case(
    ql.chain(ql.fit(ql.minmax, ql.INT4, ql.per_channel(-1)), ql.nearest()),
    lambda q: _affine(4),
  ),
  "stochastic": Case(
    ql.chain(ql.fit(ql.minmax, ql.INT4, ql.per_channel(-1)), ql.stochastic()),
    lambda q: _affine(4),
    idempotent=False,
    random=True,
  ),
  "rquant4": Case(ql.rquant(4), lambda q: 4 * K * N + 2 * 32, idempotent=False),
  "lloyd2": Case(ql.lloyd(2), lambda q: 2 * K * N + 4 * 32 * N),
  "icquant_rtn2": Case(
    ql.icquant(ql.rtn(2)), lambda q: _affine(2, 3 * N) + _gap_code(q)
  ),
  "icquant_lloyd2": Case(
    ql.icquant(ql.lloyd(2), ratio=0.08, gap_bits=5, shuffle=False),
    lambda q: 2 * K * N + 2 * 4 * 32 * N + _gap_code(q),
  ),
  "icquant_all": Case(
    ql.icquant(ql.rtn(3), ratio=1.0), lambda q: _affine(3, 3 * N) + _gap_code(q)
  ),
  "icquant_none": Case(ql.icquant(ql.rtn(3), ratio=0), lambda q: _affine(3)),
  "easyquant4": Case(
    ql.easyquant(4, sigmas=2.0, steps=20),
    lambda q: 4 * K * N + 32 * N + 8 + _exact(q),
    idempotent=False,  # tunes a new range, finds new outliers
    tolerance=5e-3,
  ),
  "rtn3_exact_zero": Case(
    ql.rtn(3, exact_zero=True), lambda q: _affine(3, zero_bits=8)
  ),
  "icquant_shuffled": Case(
    ql.icquant(ql.rtn(2), ratio=0.1, shuffle=True),
    lambda q: _affine(2, 3 * N) + _gap_code(q),
  ),
  "exact_icquant": Case(
    ql.exact_outliers(ql.icquant(ql.rtn(3), ratio=0.05), sigmas=2.0),
    lambda q: _affine(3, 3 * N) + _gap_code(q.parts[0]) + _exact(q),
    idempotent=False,
  ),
  "splitquant2": Case(
    ql.splitquant(ql.rtn(2, exact_zero=True)),
    lambda q: 3 * _affine(2, zero_bits=8),
    idempotent=False,  # finds new clusters
    parts=_branches,
  ),
  "clusterquant2": Case(
    ql.clusterquant(ql.rtn(2)),
    lambda q: _affine(2, 3 * N) + DIGITS,
    idempotent=False,
  ),
  "cfws8": Case(
    ql.cfws(),
    lambda q: 2 * (32 * N + 8) + 8 * 8 * N + 8 * 72 * N,
    shape=CONV,
    parts=_coarse_and_fine,
    idempotent=False,  # the residual of the centre is another
  ),
}
# What these add is in other tests too, and each compiles several programs.
VARIANTS = (
  "rtn2",
  "rtn8",
  "rtn4_full_range",
  "percentile",
  "icquant_all",
  "icquant_shuffled",
  "icquant_lloyd2",
  "exact_icquant",
)
NAMES = [
  pytest.param(name, marks=pytest.mark.study) if name in VARIANTS else name
  for name in CASES
]
ALL = pytest.mark.parametrize("name", NAMES)


@functools.cache
def _weights(seed=0, shape=(K, N)):
  x = np.array(draws.student_t(shape, 4.0, seed))
  x[..., 3], x[..., 4] = 0.0, 0.7
  x[..., 5] *= 1e-3
  return jnp.asarray(x)


def _key(case):
  return jax.random.key(7) if case.random else None


@functools.cache
def _stored(name):
  case = CASES[name]
  return ql.quantize(case.quantizer, _weights(0, case.shape), key=_key(case))


@functools.cache
def _training_step(name):
  """A training step through a case: what it sees, its statistics, a gradient.

  Returns:
    `step(w, state, key) -> ((values, new state), gradient)`, the cotangent
    that the gradient is of, and a list that grows with each trace.
  """
  case = CASES[name]
  cotangent = draws.normal(case.shape, 3)
  traces = []

  @jax.jit
  def step(w, state, key):
    traces.append(1)

    def loss(w):
      q, stats = case.quantizer.apply(w, state, key)
      values = q.dequantize()
      return jnp.sum(values * cotangent), (
        values,
        ql.State(state.learned, stats),
      )

    gradient, seen = jax.grad(loss, has_aux=True)(w)
    return seen, gradient

  return step, cotangent, traces


@functools.cache
def _values(name):
  return np.asarray(jax.jit(ql.dequantize)(_stored(name)))


def _grid_parts(q):
  parts = q.parts if isinstance(q, ql.Sum) else [q]
  parts = [p.part if isinstance(p, ql.Window) else p for p in parts]
  return [p for p in parts if isinstance(p, ql.QTensor)]


@ALL
def test_storage_is_lossless(name):
  case = CASES[name]
  key = _key(case)
  if key is not None:  # as quantize() hands it down
    key = jax.random.split(jax.random.split(key, 1)[0], 2)[0]
  w = _weights(0, case.shape)
  # What a training step sees, against what a checkpoint holds.
  step, _, _ = _training_step(name)
  (seen, _), _ = step(w, case.quantizer.init(w), key)
  np.testing.assert_array_equal(seen, _values(name))


@ALL
def test_error_is_at_most_half_a_step_inside_the_range(name):
  case, q = CASES[name], _stored(name)
  tensors = case.parts(_weights(0, case.shape))
  for part, x in zip(_grid_parts(q), tensors, strict=True):
    lo, hi = part.grid.bounds
    codes, at = map(np.asarray, _coded(part, x))
    inside = (at >= lo) & (at <= hi)
    if isinstance(q, ql.Sum) and isinstance(q.parts[-1], sparse.Sparse):
      inside &= np.asarray(q.parts[-1].dequantize()) == 0
    limit = 1.0 if case.random else 0.5
    assert np.max(np.where(inside, np.abs(codes - at), 0)) <= limit + 1e-4
    assert np.sum(inside) > x.size / 3


@jax.jit
def _coded(part, x):
  codes = grids.plain(part.codes).astype(jnp.float32)
  return codes, part.grid.encode(x)


@ALL
def test_codes_are_stable_on_their_own_grid(name):
  for part in _grid_parts(_stored(name)):
    np.testing.assert_allclose(*_again(part), rtol=1e-5, atol=1e-7)


@jax.jit
def _again(part):
  values = part.dequantize()
  return part.grid.decode(jnp.round(part.grid.encode(values))), values


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.study] * (name in VARIANTS))
    for name, case in CASES.items()
    if case.idempotent
  ],
)
def test_idempotent(name):
  once = _values(name)
  twice = ql.quantize(CASES[name].quantizer, jnp.asarray(once)).dequantize()
  np.testing.assert_allclose(twice, once, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    *(
      pytest.param(
        name,
        jnp.bfloat16,
        # splitquant_test has exact branches of this type.
        marks=[pytest.mark.study] * (name in (*VARIANTS, "splitquant2")),
      )
      for name in CASES
    ),
    ("rtn3", jnp.float16),
    pytest.param("lloyd2", jnp.float16, marks=pytest.mark.study),
    pytest.param("icquant_rtn2", jnp.float16, marks=pytest.mark.study),
  ],
)
def test_keeps_shape_dtype_and_structure(name, dtype):
  case = CASES[name]
  w = _weights(0, case.shape).astype(dtype)
  q = ql.quantize(case.quantizer, w, key=_key(case))
  assert (q.shape, q.dtype) == (w.shape, dtype)
  out = q.dequantize()
  assert (out.shape, out.dtype) == (w.shape, dtype)
  w, out = (np.asarray(x, np.float32) for x in (w, out))
  assert np.isfinite(out).all()
  assert np.mean((out - w) ** 2) < np.mean(w**2)


@ALL
def test_one_trace_for_two_steps(name):
  case = CASES[name]
  step, _, traces = _training_step(name)
  state = case.quantizer.init(_weights(0, case.shape))
  for seed in range(2):
    (_, new), _ = step(_weights(seed, case.shape), state, _key(case))
    assert jax.tree.structure(new) == jax.tree.structure(state)
    state = new
  assert len(traces) == 1


@ALL
def test_same_key_same_bits(name):
  case = CASES[name]
  w = _weights(0, case.shape)
  again = ql.quantize(case.quantizer, w, key=_key(case))
  for a, b in zip(
    jax.tree.leaves(again), jax.tree.leaves(_stored(name)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  if case.random:
    other = ql.quantize(case.quantizer, _weights(), key=jax.random.key(8))
    assert np.any(other.dequantize() != _values(name))
    with pytest.raises(ValueError, match="needs a PRNG key"):
      ql.quantize(case.quantizer, _weights())


@ALL
def test_nbits_equals_the_closed_form(name):
  q = _stored(name)
  assert ql.nbits(q) == CASES[name].nbits(q)
  arrays = jax.tree.leaves(q)
  assert ql.nbits(q) == 8 * sum(np.asarray(a).nbytes for a in arrays)


@pytest.mark.parametrize(
  "name",
  # Stacks of these are in composition_test.
  [name for name in NAMES if name not in ("splitquant2", "clusterquant2")],
)
def test_under_jit_of_vmap(name):
  case = CASES[name]
  stack = np.stack([_weights(seed, case.shape) for seed in range(2)])

  def quantized(w, key):
    return ql.dequantize(ql.quantize(case.quantizer, w, key=key))

  key = _key(case)
  keys = None if key is None else jnp.stack([key, jax.random.key(9)])
  both = jax.jit(jax.vmap(quantized, in_axes=(0, None if key is None else 0)))
  out = both(stack, keys)
  np.testing.assert_allclose(
    out[0], _values(name), rtol=case.tolerance, atol=1e-6
  )
  assert out.shape == stack.shape


@ALL
def test_gradient_passes_straight_through(name):
  case = CASES[name]
  w = _weights(0, case.shape)
  step, cotangent, _ = _training_step(name)
  _, gradient = step(w, case.quantizer.init(w), _key(case))
  assert np.isfinite(gradient).all()
  # Clipped elements and those that set a range differ.
  same = np.isclose(gradient, cotangent, rtol=1e-3, atol=1e-3)
  assert np.mean(same) > 0.6


def _check_constants(name, shape):
  case = CASES[name]
  for value in (0.0, -1.5):
    w = np.full(shape, value, np.float32)
    q = ql.quantize(case.quantizer, jnp.asarray(w), key=_key(case))
    np.testing.assert_allclose(q.dequantize(), w, rtol=0.2)


@ALL
def test_constant_tensors(name):
  _check_constants(name, CASES[name].shape)


# The others divide by the same ranges of a row.
ONE_ELEMENT = (
  *("rtn3", "rtn4_symmetric", "rtn4_tensor", "mse", "stochastic", "lloyd2"),
  *("icquant_rtn2", "easyquant4", "rtn3_exact_zero", "clusterquant2", "cfws8"),
)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.study] * (name not in ONE_ELEMENT))
    for name in CASES
    if "block" not in name
  ],
)
def test_rows_of_one_element(name):
  _check_constants(name, (*CASES[name].shape[:-2], 1, 3))


# What the composition of methods does not walk: see composition_test.
SHAPED = [
  ((3, 3, 32, 8), ql.lloyd(2)),
  pytest.param((3, 3, 32, 8), ql.easyquant(3), marks=pytest.mark.study),
  pytest.param((2, 64, 8), ql.lloyd(2), marks=pytest.mark.study),
  ((2, 64, 8), ql.easyquant(3)),
  ((64,), ql.rtn(4)),
  ((64,), ql.lloyd(2)),
  ((64,), ql.icquant(ql.rtn(3))),
  ((64,), ql.easyquant(3)),
]


@pytest.mark.parametrize(("shape", "quantizer"), SHAPED)
def test_convolutions_stacks_and_vectors(shape, quantizer):
  w = draws.normal(shape)
  q = ql.quantize(quantizer, w)
  out = np.asarray(q.dequantize())
  assert q.shape == out.shape == shape
  assert np.mean((out - np.asarray(w)) ** 2) < 0.2


@pytest.mark.parametrize(
  "name",
  [
    "rtn3",
    pytest.param("lloyd2", marks=pytest.mark.study),
    "icquant_rtn2",
    "easyquant4",
  ],
)
def test_stacked_equals_slice_by_slice(name):
  case = CASES[name]
  stack = jnp.asarray(np.stack([_weights(0), _weights(1)]))
  q = ql.quantize(ql.stacked(case.quantizer), stack)
  for i in range(2):
    alone = ql.quantize(case.quantizer, stack[i]).dequantize()
    np.testing.assert_allclose(
      q.dequantize()[i], alone, rtol=case.tolerance, atol=1e-6
    )


def test_stored_forms_are_small_pytrees():
  q = _stored("icquant_rtn2")
  assert isinstance(q.codes, stored.Packed)
  assert isinstance(q.grid.labels, sparse.GapCoded)
  assert qtensor.is_quantized(q)
