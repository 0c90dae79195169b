"""Speed of quantizers and of the bit codes.

qwix, the JAX quantization library, is measured beside them where it is
installed.
"""

from collections.abc import Callable, Iterator
import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

import quantlab as ql
from quantlab.core import bits, flips
from quantlab.experiments.bench import timing


def cases(size: int) -> Iterator[timing.Case]:
  """Quantizers and bit codes on a `[size, size]` float32 matrix.

  Args:
    size: rows and columns; a multiple of 128.

  Raises:
    ValueError: `size` is not.
  """
  if size < 128 or size % 128:
    raise ValueError(f"{size=} must be a multiple of 128")
  w = jax.random.normal(jax.random.key(0), (size, size))
  block = ql.rtn(4, granularity=ql.per_block(0, 128))
  methods = {
    "rtn 4-bit, blocks of 128": block,
    "rtn 2-bit": ql.rtn(2),
    "icquant over rtn 2-bit": ql.icquant(ql.rtn(2)),
    "easyquant 4-bit, 100 steps": ql.easyquant(4),
    "lloyd 4-bit": ql.lloyd(4),
  }
  for name, method in methods.items():
    yield timing.Case(
      name, lambda method=method: ql.quantize(method, w), w.size
    )
  if importlib.util.find_spec("qwix"):
    yield timing.Case("qwix int4, minmax, tiles of 128", _qwix(w), w.size)
  labels = ql.quantize(methods["icquant over rtn 2-bit"], w).grid.labels
  decode = jax.jit(lambda labels: labels.unpack())
  yield timing.Case("gap code, decode", lambda: decode(labels), w.size)
  for n in (2, 3, 4, 8):
    codes = jax.random.randint(jax.random.key(n), w.shape, 0, 2**n)
    codes = codes.astype(jnp.uint8)
    words = bits.pack(codes, n, 0)
    yield timing.Case(
      f"pack {n}-bit", lambda c=codes, n=n: bits.pack(c, n, 0), w.size
    )
    yield timing.Case(
      f"unpack {n}-bit",
      lambda w=words, n=n: bits.unpack(w, n, size, 0),
      w.size,
    )
  words = jnp.zeros(w.shape, jnp.uint32)
  flip = jax.jit(functools.partial(flips.flip_bits, rate=0.01))
  key = jax.random.key(0)
  yield timing.Case(
    "flip 1 % of all bits, bytes",
    lambda: flip(words, key=key),
    words.nbytes,
  )


def _qwix(w: jax.Array) -> Callable[[], Any]:
  import qwix

  @jax.jit
  def quantize(w):
    return qwix.quantize(
      w,
      jnp.int4,
      channelwise_axes=(1,),
      tiled_axes={0: 128},
      calibration_method="minmax",
    )

  return lambda: quantize(w)
