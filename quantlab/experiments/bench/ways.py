"""What a way to divide the work of the Triton kernel costs.

By time on a GPU, or by what the kernel compiles to for an H200. That does not
depend on the splits nor the size of K and N (`tuned.Key.form`), so it is
compiled at one shape. Instructions are those of all threads in the loop over K,
for each weight that they decode.

Shape letters: M rows of activations, K contraction, N output.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantlab.core import bits as layout
from quantlab.core import qtensor
from quantlab.experiments import aot_counts
from quantlab.experiments.bench import kernels, timing
from quantlab.kernels import triton, tuned

PROCESSORS = 132
REGISTERS = 65_536
SHARED = 233_472
"""Of an H200: how many; registers and bytes of shared memory of each."""

RESERVED = 1024
"""Bytes of shared memory that each program takes beside its own."""


class Product(NamedTuple):
  """What is multiplied.

  Attributes:
    name: of the weight's format, in `kernels.FORMATS`.
    m: M.
    shape: (K, N).
  """

  name: str
  m: int
  shape: tuple[int, int]

  def arguments(self) -> tuple[Any, Any]:
    """Shapes of x and w."""
    x = jax.ShapeDtypeStruct((self.m, self.shape[0]), jnp.bfloat16)
    return x, _shape(self.name, self.shape)

  def weight(self, key: jax.Array) -> Any:
    """A weight of random codes."""
    return _weight(self.name, self.shape, key)

  def key(self) -> tuned.Key:
    """What its entry of a table is for."""
    return tuned.key(self.m, self.arguments()[1])

  def case(self, config: triton.Config) -> str:
    """The name of a way as a case of `aot.run`."""
    way = f"{config.rows}x{config.warps}x{config.stages}"
    return f"{self.name}, M={self.m}, {way}"


def _weight(name: str, shape: tuple[int, int], key: jax.Array) -> Any:
  return kernels.weight(kernels.FORMATS[name], shape, key, jnp.bfloat16)


@functools.cache
def _shape(name: str, shape: tuple[int, int]) -> Any:
  return jax.eval_shape(
    functools.partial(_weight, name, shape), jax.random.key(0)
  )


class Way(NamedTuple):
  """What is known of a way.

  Attributes:
    config: the way.
    cost: seconds or instructions; infinite if it does not fit.
    warps: on a processor, of the programs that fit there and exist.
    loads: bytes of words that these have on the way.
  """

  config: triton.Config
  cost: float
  warps: int = 0
  loads: int = 0


def by_instructions(
  report: aot_counts.Report,
  product: Product,
  configs: Sequence[triton.Config],
) -> list[Way]:
  """Ways as compiled for an H200.

  Args:
    report: of `aot.run`, with the cases of all ways.
    product: what is multiplied.
    configs: the ways.
  """
  faults, key = report.faults(), product.key()
  found = []
  for config in configs:
    case = product.case(config)
    if case in faults:
      found.append(Way(config, math.inf))
      continue
    names = (counts.kernel for counts in report.counts[case])
    at = [name.startswith("matmul_") for name in names].index(True)
    found.append(counted(key, config, report.counts[case][at]))
  return found


def counted(key: tuned.Key, config: triton.Config, counts: Any) -> Way:
  """What counts say of a way.

  Args:
    key: of the product.
    config: the way.
    counts: `aot_counts.GpuCounts` of the kernel.
  """
  block = layout.block_size(key.k)
  threads = 32 * config.warps
  # Registers are given out by eights.
  registers = -(-counts.registers // 8) * 8 * threads
  fit = min(REGISTERS // registers, SHARED // (counts.shared + RESERVED))
  there = -(-key.n // config.rows) * config.splits
  programs = min(fit, -(-there // PROCESSORS))
  words = config.rows * block * sum(key.bits) // 8
  return Way(
    config,
    counts.loop * threads / (config.rows * block),
    programs * config.warps,
    programs * (config.stages - 1) * words,
  )


def by_seconds(
  product: Product, configs: Sequence[triton.Config], *, rounds: int
) -> list[Way]:
  """Ways as timed in turns on this machine's GPU, each checked before.

  Args:
    product: what is multiplied.
    configs: the ways.
    rounds: timed rounds; the median counts.

  Raises:
    ValueError: a product is wrong.
  """
  make = jax.jit(product.weight)
  size = qtensor.nbits(product.arguments()[1]) // 8
  count = min(kernels.COPIES, -(-kernels.CACHE // size))
  weights = [make(jax.random.key(i)) for i in range(count)]
  shape = product.m, product.shape[0]
  x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
  cases = []
  for config in configs:
    call = functools.partial(_call(config), x, weights)
    if _fits(product, config, call, x, weights[0]):
      cases.append(timing.Case(str(config), call, 1, count))
  found = timing.run(cases, rounds=rounds)["cases"]
  unfit = {"seconds": math.inf}
  return [Way(c, found.get(str(c), unfit)["seconds"]) for c in configs]


def _call(config: triton.Config) -> Any:
  """A program that multiplies by several weights."""
  multiply = functools.partial(triton.matmul, config=config)
  return jax.jit(lambda x, weights: [multiply(x, w) for w in weights])


def _fits(product, config, call, x, w) -> bool:
  try:
    y = call()[0]
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return False
  error = float(kernels.error(y, x, w))
  if not error < 2**-7:
    raise ValueError(f"{product} is wrong by {error} with {config}")
  return True
