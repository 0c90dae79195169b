"""Products with 4- and 2-bit weights of other libraries, where they run.

PyTorch's own kernels run on CPUs and CUDA; gemlite and tokamax on CUDA. Each
has its own layout, so weights are random here as well.

Shape letters: M rows of activations, K contraction, N output.
"""

from collections.abc import Callable, Iterator, Sequence
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.experiments.bench import timing

BITS = {
  "PyTorch int4pack, blocks of 128": 4.25,
  "PyTorch bfloat16 matmul": 16.0,
  "gemlite 4-bit, blocks of 128": 4.25,
  "gemlite 2-bit, blocks of 128": 2.25,
  "tokamax int4, blocks of 128": 4.25,
}
"""Stored bits per weight: two bfloat16 numbers per block beside the codes."""

COPIES = 16
"""Copies of a weight that are used in turn, so that no cache holds them."""


def cases(
  shape: tuple[int, ...], rows: int, only: Sequence[str] = ()
) -> Iterator[timing.Case]:
  """The cases that this machine can run.

  Args:
    shape: (K, N) of the weight.
    rows: M.
    only: names, or starts of names; all if empty.
  """
  cuda = jax.default_backend() == "gpu"
  makers = {}
  if importlib.util.find_spec("torch"):
    makers["PyTorch int4pack, blocks of 128"] = _torch_int4
    makers["PyTorch bfloat16 matmul"] = _torch_dense
    if cuda and importlib.util.find_spec("gemlite"):
      makers["gemlite 4-bit, blocks of 128"] = _gemlite(4)
      makers["gemlite 2-bit, blocks of 128"] = _gemlite(2)
  if cuda and importlib.util.find_spec("tokamax"):
    makers["tokamax int4, blocks of 128"] = _tokamax
  for name, make in makers.items():
    if not only or name.startswith(tuple(only)):
      yield timing.Case(name, make(shape, rows), rows, COPIES)


def _torch_device() -> Any:
  import torch

  cuda = jax.default_backend() == "gpu" and torch.cuda.is_available()
  return torch.device("cuda" if cuda else "cpu")


def _in_turn(multiply: Callable[[int], Any]) -> Callable[[], Any]:
  """Calls for every copy, and waits for all."""
  import torch

  device = _torch_device()

  def call():
    for i in range(COPIES):
      multiply(i)
    if device.type == "cuda":
      torch.cuda.synchronize()

  return call


def _torch_dense(shape: tuple[int, ...], rows: int) -> Callable[[], Any]:
  import torch

  options = {"dtype": torch.bfloat16, "device": _torch_device()}
  x = torch.randn(rows, shape[0], **options)
  weights = [torch.randn(shape[1], shape[0], **options) for _ in range(COPIES)]
  return _in_turn(lambda i: torch.nn.functional.linear(x, weights[i]))


def _torch_int4(shape: tuple[int, ...], rows: int) -> Callable[[], Any]:
  import torch

  length, columns = shape
  device = _torch_device()
  x = torch.randn(rows, length, dtype=torch.bfloat16, device=device)
  scales = torch.rand(
    length // 128, columns, 2, dtype=torch.bfloat16, device=device
  )
  weights = []
  for _ in range(COPIES):
    if device.type == "cuda":
      codes = torch.randint(0, 256, (columns, length // 2), device=device)
      packed = torch._convert_weight_to_int4pack(codes.to(torch.uint8), 8)
    else:
      codes = torch.randint(0, 16, (columns, length), dtype=torch.int32)
      packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    weights.append(packed)
  if device.type == "cuda":
    product = torch._weight_int4pack_mm
  else:
    product = torch._weight_int4pack_mm_for_cpu
  return _in_turn(lambda i: product(x, weights[i], 128, scales))


def _gemlite(bits: int) -> Callable[..., Callable[[], Any]]:
  def make(shape, rows):
    import gemlite
    import torch

    length, columns = shape
    device = _torch_device()

    def layer():
      linear = gemlite.GemLiteLinear(
        bits,
        group_size=128,
        in_features=length,
        out_features=columns,
        input_dtype=gemlite.DType.BF16,
        output_dtype=gemlite.DType.BF16,
      )
      codes = torch.randint(0, 2**bits, (columns, length), device=device)
      cells = (columns, length // 128)
      tables = torch.rand(2, *cells, dtype=torch.bfloat16, device=device)
      linear.pack(codes.to(torch.uint8), *tables, None)
      return linear

    layers = [layer() for _ in range(COPIES)]
    x = torch.randn(rows, length, dtype=torch.bfloat16, device=device)
    return _in_turn(lambda i: layers[i](x))

  return make


def _tokamax(shape: tuple[int, ...], rows: int) -> Callable[[], Any]:
  import qwix
  import tokamax

  def quantized(key):
    w = jax.random.normal(key, (1, *shape), jnp.bfloat16)
    return qwix.quantize(w, jnp.int4, tiled_axes={1: 128})

  weights = [quantized(jax.random.key(i)) for i in range(COPIES)]
  x = jax.random.normal(jax.random.key(0), (rows, shape[0]), jnp.bfloat16)
  sizes = jnp.array([rows])
  every = jax.jit(
    lambda x, weights: [tokamax.ragged_dot(x, w, sizes) for w in weights]
  )
  return lambda: every(x, weights)
