import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.experiments import evaluate
from quantlab.experiments.tasks import base
from tests import draws


def test_cosine_of_a_row_of_zeros_is_zero():
  assert evaluate.cosine(np.array([[0.0, 0], [2, 0]]), np.ones((2, 2))) == (
    pytest.approx(0.5 / math.sqrt(2))
  )


def test_damage_by_hand():
  x, y = jnp.array([[1.0, -2.0], [2.0, 4.0]]), jnp.array([[1, -1.5], [2, 3]])
  error = evaluate.damage(x, y)
  assert error == evaluate.Error(signal=25, noise=1.25, worst=1)
  assert evaluate.sqnr(error) == pytest.approx(10 * math.log10(20))


def test_sqnr_of_a_model_pools_its_tensors():
  parts = [evaluate.Error(99, 0.5, 0.1), evaluate.Error(1, 0.5, 0.7)]
  error = evaluate.total(parts)
  assert error == evaluate.Error(100, 1, 0.7)
  assert evaluate.sqnr(error) == 20  # not the mean of 23 and 3
  assert evaluate.total([]) == evaluate.Error(0, 0, 0)


def test_sqnr_of_no_damage_is_none():
  assert evaluate.sqnr(evaluate.damage(jnp.ones(3), jnp.ones(3))) is None


@pytest.mark.parametrize(
  "quantizer",
  [ql.rtn(3), ql.icquant(ql.lloyd(2)), ql.easyquant(3, sigmas=1.5)],
)
def test_decode_is_dequantize_to_the_bit(quantizer):
  w = jnp.sin(jnp.arange(64 * 32.0) ** 1.5).reshape(64, 32) ** 3
  tree = {"a": ql.quantize(quantizer, w), "b": jnp.ones(3)}
  found, expected = evaluate.decode(tree), ql.dequantize(tree)
  assert found.keys() == expected.keys()
  for name in found:
    np.testing.assert_array_equal(found[name], expected[name])


def test_forms_give_the_same_outputs():
  x, w = draws.normal((3, 512)), draws.normal((512, 512), 1)
  params = {"kernel": w}
  model = nn.Dense(512, use_bias=False)
  batch = base.Batch((x,), np.arange(3))
  task = _task(model, params, lambda y, x: y, [batch])
  outputs = evaluate.outputs(task)
  stored = ql.quantize(ql.icquant(ql.rtn(2)), params)
  packed, decoded = (
    outputs(evaluate.form({"evaluate": name})(stored))
    for name in ("packed", "decoded")
  )
  np.testing.assert_allclose(packed, decoded, rtol=1e-3, atol=1e-3)
  assert np.abs(packed - outputs(params)).max() > 0.1


def test_packed_is_the_default():
  assert evaluate.form({}) is evaluate.FORMS["packed"]


def _task(model, params, head, batches):
  return base.Task(
    model=model,
    params=params,
    head=head,
    batches=batches,
    compare=lambda found, reference: {},
    loss=lambda params, batch: jnp.zeros(()),
    spare=lambda count: [],
    sha256="",
    source="",
  )


def test_outputs_keep_the_order_of_rows():
  model = nn.Dense(3)
  x = draws.normal((5, 4))
  params = jax.jit(model.init)(jax.random.key(1), x)["params"]
  rows = [np.array([4, 0, 2]), np.array([1, 3])]
  # The last batch ends in filler.
  last = jnp.concatenate([x[rows[1]], jnp.ones((1, 4))])
  batches = [base.Batch((x[rows[0]],), rows[0]), base.Batch((last,), rows[1])]
  task = _task(model, params, lambda y, x: y + x[:, :3], batches)
  outputs, steps = evaluate.outputs(task), []

  def track(batches):
    steps.append(len(batches))
    return batches

  expected = model.apply({"params": params}, x) + x[:, :3]
  np.testing.assert_allclose(outputs(params, track), expected, atol=1e-6)
  assert steps == [2]
  acts = ql.by_path([("^in$", ql.rtn(2)), ("", ql.keep())])
  coarse = ql.dequantize(ql.quantize(ql.rtn(2), x[rows[0]]))
  coarse = model.apply({"params": params}, coarse) + x[rows[0], :3]
  found = outputs(params, acts=acts)
  assert np.abs(found - expected).max() > 0.1
  np.testing.assert_allclose(found[rows[0]], coarse, atol=1e-5)
