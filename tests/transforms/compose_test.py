import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import base
from quantlab.transforms import compose
from tests import draws

W = draws.normal((64, 8))


def _never(q):
  raise AssertionError("ran")


@pytest.mark.parametrize(
  "quantizer",
  [
    ql.rtn(4),
    ql.stacked(ql.icquant(ql.lloyd(2), ratio=0.05)),
    ql.exact_outliers(ql.split(ql.masks(ql.beyond(1.0)), *[ql.rtn(2)] * 2)),
    ql.cfws(),
    ql.chain(ql.rtn(8), ql.bit_errors(0.01)),
  ],
)
def test_what_keeps_nothing_says_so_through_every_combinator(quantizer):
  assert isinstance(quantizer.init, base.Stateless)
  assert not jax.tree.leaves(quantizer.init(W))


def test_a_state_takes_no_work_that_it_does_not_depend_on():
  tracked = ql.tracked(ql.ema(), spec=ql.INT8, granularity=ql.per_tensor)
  after = ql.chain(tracked, compose.stage(_never), ql.nearest())
  assert jax.tree.leaves(after.init(W))
  assert not jax.tree.leaves(ql.chain(compose.stage(_never)).init(W))


def test_a_state_starts_from_what_the_stages_before_make():
  halved = compose.stage(lambda q: ql.lift(q.dequantize() / 2))
  learned = ql.lsq(4)
  series = ql.chain(halved, compose.stage(lambda q: q), learned)
  found = series.init(W).learned[-1]
  expected = learned.init(W / 2).learned
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert jax.tree.leaves(expected)
  # The structure is that of all stages, also of those that keep nothing.
  q, stats = series.apply(W, series.init(W))
  assert len(stats) == 3
  assert jnp.max(jnp.abs(q.dequantize() - W / 2)) < 0.3
