import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from tests import draws


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_is_stored_in_its_type_and_runs_in_the_tensors_own(dtype):
  x = draws.normal((4, 6))
  stored = ql.quantize(ql.cast(dtype), x)
  assert stored.dtype == dtype
  assert ql.nbits(stored) == 16 * 24
  q, _ = ql.cast(dtype).apply(x, ql.State())
  assert q.dequantize().dtype == jnp.float32  # what reads it adds up in that
  np.testing.assert_array_equal(q.dequantize(), stored.astype(jnp.float32))


def test_one_type_is_one_quantizer():
  assert ql.cast("float16") is ql.cast(jnp.float16)
  with pytest.raises(ValueError, match="cast takes a type of floats, got"):
    ql.cast(jnp.int8)
