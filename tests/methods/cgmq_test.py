"""Numbers of the CGMQ study: arXiv 2409.20138 and Bayesian Bits' quantizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import quantlab as ql
from quantlab.methods import cgmq
from tests import draws

X = [-1.4, -1, -0.62, -0.31, -0.1, 0, 0.04, 0.31, 0.55, 0.88, 1, 2]
CODES = {
  (True, 2): [-1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1],
  (True, 4): [-7, -7, -5, -2, -1, 0, 0, 2, 4, 7, 7, 7],
  (True, 8): [-127, -127, -79, -40, -13, 0, 5, 40, 70, 112, 127, 127],
  (False, 2): [0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 3, 3],
  (False, 4): [0, 0, 0, 0, 0, 0, 1, 5, 8, 13, 15, 15],
  (False, 8): [0, 0, 0, 0, 0, 0, 10, 79, 140, 224, 255, 255],
}


def _at(state, bits):
  gate, rest = state.learned
  return state._replace(learned=(gate.at(bits), rest))


def _bounded(state, bound):
  """The state with its range ending at `bound`."""
  gate, rest = state.learned
  rest = jax.tree.map(lambda a: jnp.full_like(a, bound), rest)
  return state._replace(learned=(gate, rest))


@pytest.mark.parametrize(("signed", "bits"), CODES)
def test_codes(signed, bits):
  x = jnp.array(X)[:, None]
  quantizer = ql.cgmq(signed=signed)
  state = _at(_bounded(quantizer.init(x), 1.0), bits)
  q = ql.quantize(quantizer, x, state=state)
  assert q.codes.unpack().ravel().tolist() == CODES[signed, bits]
  step = (1 + signed) / (2**bits - 1)
  np.testing.assert_allclose(
    q.dequantize().ravel(), step * np.array(CODES[signed, bits]), rtol=1e-6
  )


def test_levels_of_fewer_bits_are_levels_of_more():
  x = draws.normal((500, 1))
  state = _bounded(ql.cgmq().init(x), 2.5)
  values = {
    bits: np.asarray(
      ql.dequantize(ql.quantize(ql.cgmq(), x, state=_at(state, bits)))
    )
    for bits in (2, 4, 8, 16)
  }
  for few, many in ((2, 4), (4, 8), (8, 16)):
    steps = values[few] * (2**many - 1) / 5
    np.testing.assert_allclose(steps, np.round(steps), atol=2e-3)
    # Bayesian Bits' sum: the rest is less than half a step of the fewer.
    rest = np.abs(np.clip(x, -2.5, 2.5) - values[few])
    assert rest.max() <= 2.5 / (2**few - 1) * (1 + 1e-5)


def test_all_gates_open_change_nothing():
  x = draws.normal((64, 5))
  q, _ = jax.jit(ql.cgmq().apply)(x, ql.cgmq().init(x))
  np.testing.assert_array_equal(q.dequantize(), x)


@pytest.mark.parametrize("bits", [2, 16])
def test_what_is_stored_is_what_was_seen(bits):
  x = draws.normal((64, 5))
  state = _at(ql.cgmq().init(x), bits)
  seen, _ = jax.jit(ql.cgmq().apply)(x, state)
  q = ql.quantize(ql.cgmq(), x, state=state)
  assert q.codes.bits == bits
  np.testing.assert_array_equal(q.dequantize(), seen.dequantize())


def test_the_staircase():
  value = jnp.array([-1, 0, 0.5, 1, 1.001, 2, 3, 4, 4.001, 5.5])
  gate = ql.Gate(value, value, value, (2, 4, 8, 16, 32))
  assert gate.bits.tolist() == [0, 0, 2, 2, 4, 4, 8, 16, 32, 32]
  with pytest.raises(ValueError, match=r"bits=3 is none of the widths \(2, 4"):
    gate.at(3)


def _steps(direction, rate, slope, size, over, count):
  gate = ql.Gate.open((1, 1), (2, 4, 8, 16, 32))
  optimizer = ql.guided(direction, rate)
  state = optimizer.init(gate)._replace(over=jnp.array(over))
  seen = ql.Gate(
    gate.slope, jnp.full((1, 1), slope), jnp.full((1, 1), size), gate.widths
  )

  def step(carry, _):
    gate, state = carry
    moves, state = optimizer.update(seen, state, gate)
    gate = optax.apply_updates(gate, moves)
    return (gate, state), (gate.value[0, 0], gate.bits[0, 0])

  return jax.jit(lambda: jax.lax.scan(step, (gate, state), length=count))()


def test_a_constant_step_reaches_each_width_in_time():
  _, (_, bits) = _steps("dir_3", 0.01, 0.0, 0.0, True, 600)
  first = [int(np.argmax(bits <= n)) + 1 for n in (16, 8, 4, 2)]
  np.testing.assert_allclose(first, [150, 250, 350, 450], atol=1)


@pytest.mark.parametrize("direction", cgmq.DIRECTIONS)
@pytest.mark.parametrize("slope", [0.0, 1e-3, 1e4])
def test_gates_fall_strictly_and_never_while_within(direction, slope):
  # Dead units have no gradient at all; large ones have a fall all the same.
  _, (value, _) = _steps(direction, 1e-3, slope, 0.1, True, 50)
  moves = np.diff(value)
  at_floor = np.asarray(value[1:]) <= 0.5
  assert np.all((moves < 0) | at_floor)
  _, (value, _) = _steps(direction, 1e-3, slope, 0.1, False, 50)
  assert np.all(np.diff(value) >= 0)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
  (gate, state), _ = _steps("dir_2", 0.01, np.nan, 0.1, True, 7)
  assert gate.value.item() == 5.5
  assert state.skipped == 7


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: ql.guided("dir_4"), "'dir_4' is none of dir_1, dir_2, dir_3"),
    (lambda: ql.guided("dir_1", 0.0), "rate=0.0 has to be above 0"),
    (lambda: ql.gated(ql.rtn, widths=(4, 2)), r"widths=\(4, 2\)"),
  ],
)
def test_refuses(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_what_a_gate_is_told(each, batch):
  # The loss is a mean over examples: of each, the gradient is 2 x / 3.
  x = draws.normal((4, 3))
  quantizer = ql.cgmq(each=each, batch=batch)
  state = _bounded(quantizer.init(x), 10.0)  # nothing is clipped

  def loss(learned):
    q, _ = quantizer.apply(x, state._replace(learned=learned))
    return jnp.mean(jnp.square(q.dequantize()).sum(axis=1) / 3)

  gate, _ = jax.jit(jax.grad(loss))(state.learned)
  slope, size = np.asarray(2 * x / 3 / 4), np.asarray(x)
  if batch:
    slope, size = slope.sum(0, keepdims=True), size.mean(0, keepdims=True)
  slope, size = np.abs(slope), np.abs(size)
  if not each:
    slope, size = slope.mean(keepdims=True), size.mean(keepdims=True)
  np.testing.assert_allclose(gate.slope, slope, rtol=1e-5)
  np.testing.assert_allclose(gate.size, size, rtol=1e-5)
  assert not np.any(gate.value)


def test_elements_have_their_own_bits():
  x = draws.normal((4, 3))
  quantizer = ql.cgmq(each=True)
  state = quantizer.init(x)
  gate, rest = state.learned
  bits = np.resize([2, 4, 8, 16, 32], x.shape)
  value = np.searchsorted(gate.widths, bits) + 0.5
  mixed = ql.Gate(jnp.asarray(value), gate.slope, gate.size, gate.widths)
  q, _ = quantizer.apply(x, state._replace(learned=(mixed, rest)))
  np.testing.assert_array_equal(mixed.bits, bits)
  one = ql.cgmq()
  for n in gate.widths:
    alone, _ = one.apply(x, _at(one.init(x), n))
    at = bits == n
    np.testing.assert_allclose(
      np.asarray(q.dequantize())[at],
      np.asarray(alone.dequantize())[at],
      rtol=1e-6,
    )


@pytest.mark.parametrize("method", ["rtn", "icquant", "lsq"])
def test_gates_of_any_quantizer(method):
  inner = {
    "rtn": ql.rtn,
    "icquant": functools.partial(_icquant, ratio=0.05),
    "lsq": ql.lsq,
  }[method]
  w = draws.normal((96, 4))
  quantizer = ql.gated(inner, widths=(2, 3))
  state = quantizer.init(w)
  for bits in (2, 3):
    q = ql.quantize(quantizer, w, state=_at(state, bits))
    seen, _ = jax.jit(quantizer.apply)(w, _at(state, bits))
    np.testing.assert_array_equal(q.dequantize(), seen.dequantize())
    assert q.codes.bits == bits


def _icquant(bits, ratio):
  return ql.icquant(ql.rtn(bits), ratio=ratio)


def test_a_gate_in_a_chain_is_settled_too():
  w = draws.normal((32, 4))
  quantizer = ql.chain(ql.gated(ql.rtn, widths=(2, 4)), ql.rtn(8))
  state = quantizer.init(w)
  assert ql.quantize(quantizer, w, state=state).codes.bits == 8


def test_a_gate_inside_another_quantizer_is_refused_when_it_is_stored():
  w = draws.normal((2, 32, 4))
  quantizer = ql.stacked(ql.gated(ql.rtn, widths=(2, 4)))
  state = quantizer.init(w)
  with pytest.raises(ValueError, match="put it outside, as in gated"):
    ql.quantize(quantizer, w, state=state)
