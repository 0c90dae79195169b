import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.core import bits as layout
from quantlab.kernels import planes


@pytest.mark.parametrize("block", [256, 128, 96, 100, 7])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_runs_are_the_layout(bits, block):
  codes = np.random.default_rng(bits).integers(0, 2**bits, block)
  words = np.asarray(layout.pack(jnp.asarray(codes), bits))
  found = np.full(2 * block, -1)
  for run in planes.runs(block, bits):
    assert run.start % 2 == 0
    for i in range(run.words):
      for half in range(2):
        code, place = 0, 0
        for piece in run.pieces:
          word = int(words[piece.word + i]) >> (piece.shift + 16 * half)
          code |= (word & (2**piece.width - 1)) << place
          place += piece.width
        found[run.start + 2 * i + half] = code
  np.testing.assert_array_equal(found[:block], codes)
