import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.kernels import scan
from tests import draws
from tests.kernels import forms


@st.composite
def _cases(draw):
  bits = draw(st.sampled_from([2, 3, 4, 8, 1, 5, 6, 7]))
  kinds = forms.KINDS if 1 < bits < 5 else forms.KINDS[:1]
  kind = draw(st.sampled_from(kinds))
  length = draw(st.sampled_from([128, 256, 384, 768]))
  cells = draw(st.sampled_from([1, 2, length // 128, length // 32]))
  size = (length, draw(st.integers(1, 40)))
  return kind, bits, size, cells, draw(st.sampled_from([1, 2, 3, 20, 65]))


def _agrees(case):
  kind, bits, size, cells, num_rows = case
  w = forms.matrix(kind, bits, size, cells=cells)
  x = draws.normal((num_rows, size[0]), 1)
  y = scan.matmul(x, w)
  assert y.dtype == jnp.float32
  # A zero far from the codes is a large term that the others cancel.
  assert forms.error(y, x, w) < 1e-5


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
  monkeypatch.setattr(scan, "FEWEST", 0)
  monkeypatch.setattr(scan, "BESIDE", 0)


EXAMPLES = [
  ("affine", 4, (256, 33), 1, 1),
  pytest.param(("affine", 2, (384, 7), 3, 2), marks=pytest.mark.study),
  ("affine", 3, (512, 9), 4, 3),
  ("affine", 8, (256, 5), 8, 65),
  pytest.param(("affine", 5, (128, 3), 1, 1), marks=pytest.mark.study),
  ("codebook", 3, (256, 6), 2, 1),
  ("icquant", 2, (512, 5), 1, 1),
  ("icquant", 4, (384, 5), 1, 20),
  pytest.param(("two_tables", 2, (256, 4), 2, 65), marks=pytest.mark.study),
  ("clusters", 3, (256, 4), 1, 1),
]


@pytest.mark.parametrize("case", EXAMPLES, ids=str)
def test_agrees_with_float64(case):
  _agrees(case)


@pytest.mark.study
@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(_cases())
def test_agrees_with_float64_everywhere(case):
  _agrees(case)


def test_never_holds_the_decoded_weight():
  w = forms.matrix("affine", 4, (4096, 128))
  for num_rows, most in ((1, 16), (16, 16), (128, 4)):
    x = jnp.ones((num_rows, 4096))
    memory = scan.matmul.lower(x, w).compile().memory_analysis()
    rest = x.nbytes * 2 + num_rows * 128 * 4 * 4
    assert memory.temp_size_in_bytes < w.size * 4 / most + rest, num_rows


def test_a_small_weight_is_left_to_xla(monkeypatch):
  monkeypatch.setattr(scan, "FEWEST", 2**18)
  w = forms.matrix("affine", 4, (128, 8))
  with pytest.raises(NotImplementedError, match="1024 weights are few for 65"):
    scan.matmul(jnp.ones((65, 128)), w)


def test_odd_cells_are_refused():
  w = forms.matrix("affine", 4, (384, 8), cells=128)
  with pytest.raises(NotImplementedError, match="cells of 3 codes"):
    scan.matmul(jnp.ones((1, 384)), w)


def test_columns_stay_on_their_devices():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
  spec = jax.sharding.PartitionSpec
  put = functools.partial(
    jax.device_put,
    device=jax.sharding.NamedSharding(mesh, spec(None, "x")),
  )
  w = forms.matrix("icquant", 2, (256, 64))
  sharded = jax.tree.map(put, w)
  x = draws.normal((3, 256), 1)
  y = scan.matmul(x, sharded)
  assert y.sharding.spec == spec(None, "x")
  assert forms.error(y, x, w) < 1e-5
  text = scan.matmul.lower(x, sharded).compile().as_text()
  assert "all-gather" not in text
  assert "all-to-all" not in text
