"""What `launch.aot` compiles: every kernel of a target, at typical shapes.

Shape letters: M rows of activations, K contraction, N output.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.experiments.bench import kernels
from quantlab.kernels import ops

SHAPE = 4096, 4096
"""K and N."""

KERNELS = {"h200": ("triton", "mosaic_gpu"), "v5e": ("mosaic_tpu",)}
KERNELS["v6e"] = KERNELS["v5e"]

FORMATS = (
  "8-bit",
  "4-bit",
  "4-bit, blocks of 128",
  "3-bit, blocks of 128",
  "2-bit",
  "2-bit, blocks of 128",
  "ICQuant 2-bit, 5 %",
  "codebook 2-bit",
)

UNIFORM_ONLY = {"mosaic_gpu"}
"""Kernels that take no other grids."""


def cases(target: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
  """Functions and the shapes of their arguments, by name.

  All formats with 16 rows of activations, one with 1 and with 64; and `ops.dot`
  with float32 activations, which has to find the kernel by itself.

  Args:
    target: a key of `KERNELS`.
  """
  found = {}
  for name in KERNELS[target]:
    kernel = importlib.import_module(f"quantlab.kernels.{name}")
    for form in FORMATS:
      if name in UNIFORM_ONLY and kernels.FORMATS[form].kind != "uniform":
        continue
      found[f"{name}, {form}, M=16"] = _case(kernel.matmul, form, 16)
    for rows in (1, 64):
      form = "4-bit, blocks of 128"
      found[f"{name}, {form}, M={rows}"] = _case(kernel.matmul, form, rows)
  found["ops.dot, 4-bit, float32, M=1"] = _case(
    ops.dot, "4-bit", 1, jnp.float32
  )
  return found


def _case(function: Any, form: str, rows: int, dtype: Any = jnp.bfloat16):
  weight = functools.partial(
    kernels.weight, kernels.FORMATS[form], SHAPE, dtype=dtype
  )
  x = jax.ShapeDtypeStruct((rows, SHAPE[0]), dtype)
  return function, (x, jax.eval_shape(weight, jax.random.key(0)))
