import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import grids, qtensor, stored
from quantlab.kernels import form
from tests import draws

W = draws.normal((128, 12))
WIDE = draws.normal((128, 32))


def _same(w, q, contract=(0,)):
  kernel = form.matrix(q, contract)
  order = [*contract, *(i for i in range(w.ndim) if i not in contract)]
  length = int(np.prod([w.shape[i] for i in contract]))
  dense = q.dequantize().transpose(order).reshape(length, -1)
  assert kernel.codes.lo == 0
  assert kernel.codes.axes == (-2,)
  assert not kernel.shape[0] % 128
  for table in jax.tree.leaves(form.tables_of(kernel.grid)):
    assert table.shape[:2] == (table.shape[0], kernel.shape[1])
    assert table.dtype == jnp.float32
  out = kernel.dequantize()[:length]
  np.testing.assert_allclose(out, dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  "method",
  [
    ql.rtn(3, granularity=ql.per_block(0, 32)),
    ql.rtn(4, symmetric=True),
    ql.rtn(4, granularity=ql.per_tensor),
    ql.lloyd(2),
    ql.icquant(ql.rtn(3)),
    pytest.param(
      ql.icquant(ql.rtn(3, symmetric=True)), marks=pytest.mark.study
    ),
    ql.icquant(ql.lloyd(2)),
    ql.clusterquant(ql.rtn(2)),
  ],
)
def test_stored_weights_have_a_kernel_form(method):
  _same(W, form.prepare(ql.quantize(method, W)))


def test_axes_are_folded():
  heads = draws.normal((4, 32, 5, 3), 1)
  each = ql.per_channel(2, 3)
  _same(heads, ql.quantize(ql.rtn(4, granularity=each), heads), (0, 1))
  rows = ql.quantize(ql.rtn(4, granularity=ql.per_channel(0)), W.T)
  _same(W.T, rows, (1,))
  blocks = draws.normal((8, 32, 5), 2)
  cells = ql.quantize(ql.rtn(4, granularity=lambda shape: (4, 1, 5)), blocks)
  _same(blocks, cells, (0, 1))


def test_k_is_filled_up():
  w = draws.normal((48, 12))
  _same(w, form.prepare(ql.quantize(ql.icquant(ql.rtn(2)), w)))


REFUSED = {
  "no kernel for Array": ql.keep(),
  "GapCoded, not packed": ql.icquant(ql.rtn(3)),
  r"packed along \(-1,\), contracted along \(-2,\)": ql.rtn(
    4, granularity=ql.per_channel(0)
  ),
  "codes on Bounded": ql.rquant(4),
  "codes of 16 bits": ql.rtn(16),
  "no kernel for Sum": ql.splitquant(ql.rtn(2)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_form_says_why(reason):
  w = ql.quantize(REFUSED[reason], WIDE)
  reason = reason.replace("Array", type(w).__name__)
  with pytest.raises(NotImplementedError, match=reason):
    form.matrix(w, (0,))


def test_cells_across_k_are_refused():
  w = draws.normal((8, 32, 5))
  q = ql.quantize(ql.rtn(4, granularity=lambda shape: (1, 4, 5)), w)
  with pytest.raises(NotImplementedError):
    form.matrix(q, (0, 1))
  padded = ql.quantize(
    ql.rtn(4, granularity=ql.per_block(0, 20)), draws.normal((40, 12))
  )
  with pytest.raises(NotImplementedError, match="cells within 40 codes"):
    form.matrix(padded, (0,))


def test_prepare_keeps_values_and_all_else():
  plan = ql.by_path(
    [
      ("a", ql.splitquant(ql.icquant(ql.rtn(2)))),
      ("b", ql.cfws()),
      ("", ql.keep()),
    ]
  )
  kernel = draws.normal((3, 3, 4, 8), 3)
  tree = ql.quantize(plan, {"a": W, "b": kernel, "c": W})
  ready = form.prepare(tree)
  for part in ready["a"].parts:
    assert isinstance(part.grid.labels, stored.Packed)
  jax.tree.map(
    np.testing.assert_array_equal, ql.dequantize(ready), ql.dequantize(tree)
  )
  assert isinstance(tree["a"].parts[0].grid, grids.Labelled)
  assert qtensor.is_quantized(ready["b"])
  labels = ql.quantize(ql.splitquant(ql.clusterquant(ql.rtn(2)), k=2), W)
  assert form.prepare(labels).parts[0].grid.labels.bits == 2
