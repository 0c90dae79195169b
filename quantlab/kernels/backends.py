"""Which kernel multiplies by a packed weight, by platform.

CPU   `scan`, plain XLA.
GPU   `triton`, then `mosaic_gpu`.
TPU   `mosaic_tpu`.

Accelerators multiply bfloat16. A wider activation is a sum of two or three
bfloat16 terms, which lie side by side as more rows, so that float32 keeps its
accuracy.

Shape letters: M rows of activations, K contraction, N output, T terms.
"""

import functools
import importlib
from typing import Any

import jax
from jax.experimental import custom_partitioning
import jax.numpy as jnp
import numpy as np

from quantlab.core import grids, qtensor
from quantlab.kernels import scan

Array = jax.Array

_ACCELERATORS = {
  "gpu": ("triton", "mosaic_gpu"),
  "tpu": ("mosaic_tpu",),
}

_TERMS = {"bfloat16": 1, "float16": 2, "float32": 3}
"""bfloat16 numbers that add up to one of another type."""

DTYPES = frozenset(map(jnp.dtype, _TERMS))
"""Types of activations."""


@jax.custom_jvp
def matmul(x: Array, w: qtensor.QTensor) -> Array:
  """`x @ w` by the kernel of the platform that it is compiled for.

  Its derivatives are those of the product with the decoded weight, by the
  tables of the grid as well as by x.

  Args:
    x: `[M, K]` bfloat16, float16 or float32.
    w: `[K, N]` in kernel form; see `quantlab.kernels.form`.

  Returns:
    `[M, N]` float32.

  Raises:
    NotImplementedError: no kernel of the platform takes it, and why.
  """
  platform, certain = _platform()
  if platform == "cpu":
    return _on_cpu(x, w)
  if platform not in _ACCELERATORS:
    raise NotImplementedError(f"no kernels for {platform=}")

  accelerated = functools.partial(on_accelerator, platform=platform)
  if certain:
    return accelerated(x, w)
  return jax.lax.platform_dependent(x, w, cpu=_on_cpu, default=accelerated)


def _reference(x: Array, w: qtensor.QTensor) -> Array:
  return jnp.dot(
    x.astype(jnp.float32),
    w.dequantize(),
    precision=jax.lax.Precision.HIGHEST,
  )


@functools.partial(matmul.defjvp, symbolic_zeros=True)
def _derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
  (x, w), (dx, dw) = primals, tangents
  y = matmul(x, w)
  total = jnp.zeros_like(y)
  if not _is_zero(dx):
    total += _reference(dx, w)
  # A frozen weight costs nothing: its tangent is never made.
  if not all(map(_is_zero, jax.tree.leaves(dw, is_leaf=_is_zero))):
    dw = jax.tree.map(_instantiated, dw, is_leaf=_is_zero)
    total += jax.jvp(functools.partial(_reference, x), (w,), (dw,))[1]
  return y, total


def _is_zero(tangent: Any) -> bool:
  return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _instantiated(tangent: Any) -> Any:
  if not _is_zero(tangent):
    return tangent
  make = np.zeros if tangent.dtype == jax.dtypes.float0 else jnp.zeros
  return make(tangent.shape, tangent.dtype)


def _platform() -> tuple[str, bool]:
  """The platform to compile for, and whether it can be no other."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is not None:
    return device.platform, True
  return jax.default_backend(), False


def _on_cpu(x: Array, w: qtensor.QTensor) -> Array:
  return scan.matmul(x.astype(jnp.float32), w)


def on_accelerator(
  x: Array, w: qtensor.QTensor, platform: str, *, interpret: bool = False
) -> Array:
  """The product by the first kernel of a platform that takes it.

  Columns of w that lie on several devices stay there, and so do rows of x; what
  is cut along K is gathered, in its packed form.

  Args:
    x: as in `matmul`, and so w, the result and the error.
    w: a weight.
    platform: `"gpu"` or `"tpu"`.
    interpret: whether to run the kernel on any platform, slowly.
  """
  terms = _TERMS[x.dtype.name]
  options: dict[str, Any] = {"interpret": interpret}
  if not isinstance(w.grid, grids.Affine):
    # Values that are looked up are rounded to terms as well.
    options["terms"] = 1 if terms == 1 else 3
  rows = _split(x, terms)
  reasons = []
  for name in _ACCELERATORS[platform]:
    try:
      kernel = importlib.import_module(f"quantlab.kernels.{name}")
      multiply = functools.partial(kernel.matmul, **options)
      y = _partitioned(multiply, rows, w)
    except (ImportError, NotImplementedError) as error:
      reasons.append(f"{name}: {error}")
      continue
    return y.reshape(-1, terms, w.shape[1]).sum(1)
  raise NotImplementedError("; ".join(reasons))


def _partitioned(multiply: Any, x: Array, w: qtensor.QTensor) -> Array:
  """`multiply(x, w)` on each device for its rows of x and columns of w."""
  leaves, tree = jax.tree.flatten(w)

  def product(x, *leaves):
    return multiply(x, jax.tree.unflatten(tree, leaves))

  def shardings(mesh, args, result):
    del result
    rows, columns = _axis(args[0], 0), _axis(args[1], 1)

    def on(*names):
      spec = jax.sharding.PartitionSpec(*names)
      return jax.sharding.NamedSharding(mesh, spec)

    return on(rows, columns), (
      on(rows, None),
      *(on(None, columns),) * len(leaves),
    )

  def partition(mesh, args, result):
    out, inputs = shardings(mesh, args, result)
    return mesh, product, out, inputs

  whole = custom_partitioning.custom_partitioning(product)
  whole.def_partition(
    partition,
    infer_sharding_from_operands=lambda *of: shardings(*of)[0],
    sharding_rule=_rule(leaves),
  )
  # A batch of weights is multiplied one after the other.
  return jax.custom_batching.sequential_vmap(whole)(x, *leaves)


def _axis(arg: Any, dim: int) -> Any:
  """The mesh axes over which a dimension of an argument is cut, if any."""
  spec = getattr(arg.sharding, "spec", ())
  return spec[dim] if dim < len(spec) else None


def _rule(leaves: list[Array]) -> str:
  """Which dimensions are the same: rows of x and y, columns of all else."""
  inputs = ["m k"]
  for i, leaf in enumerate(leaves):
    rest = [f"c{i}_{j}" for j in range(leaf.ndim - 2)]
    inputs.append(" ".join([f"k{i}", "n", *rest]))
  return f"{', '.join(inputs)} -> m n"


def _split(x: Array, terms: int) -> Array:
  """`[M * T, K]` bfloat16 rows that add up to x."""
  rest, rows = x.astype(jnp.float32), []
  for _ in range(terms):
    # A conversion there and back is one that compilers may leave out.
    row = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
    rows.append(row.astype(jnp.bfloat16))
    rest = rest - row
  # Terms of one row stay together, so that rows on several devices do.
  return jnp.stack(rows, axis=1).reshape(-1, x.shape[1])
