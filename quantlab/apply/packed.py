"""Runs modules from packed weights, through flax's own interceptor.

A product reads its kernel packed: the module runs once more on its own, with a
placeholder in the kernel's place and flax's hook for the product set to
`kernels.ops`. So its dtype promotion, bias and padding stay flax's. Nothing
reads the placeholder, and under `jit` it is never made.

Any other module that owns a quantized parameter sees it dequantized, through
flax's own `nn.map_variables`: it keeps its path, its random streams and its
mutable collections.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from quantlab.core import qtensor
from quantlab.kernels import ops


def intercept(
  next_method: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: Mapping[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  """An interceptor of module calls; see `flax.linen.intercept_methods`."""
  module, method = context.module, context.method_name
  variables = dict(module.variables) if module.scope is not None else {}
  params = variables.get("params", {})
  packed = {k: v for k, v in params.items() if qtensor.is_quantized(v)}
  # A function that a lifted transform runs on a module is none of its methods;
  # it will call one.
  if not packed or not hasattr(type(module), method):
    return next_method(*args, **kwargs)
  if method == "setup":
    # Reading the parameter here would fail flax's shape check. The method that
    # follows runs on a copy of the module, and so does its setup.
    return None
  product = _PRODUCTS.get((type(module), method))
  if product is not None:
    return product(module, packed, variables, *args, **kwargs)
  return _dequantized(module, params.keys(), method, *args, **kwargs)


def _dequantized(module, names, method, *args, **kwargs):
  """Runs a method of a module that sees its own parameters dequantized."""

  def run(module, *args, **kwargs):
    return getattr(module, method)(*args, **kwargs)

  def plain(variables):
    params = variables.get("params", {})
    if params.keys() != names:  # of a module in a field of this one
      return variables
    return {**variables, "params": _own_dequantized(params)}

  return nn.map_variables(run, "params", plain)(module, *args, **kwargs)


def _own_dequantized(params):
  return {
    name: w.dequantize() if qtensor.is_quantized(w) else w
    for name, w in params.items()
  }


def _alone(module, variables, held, hooks, *args, **kwargs):
  """Calls a detached copy of a module, with hooks and some params replaced."""
  copy = module.clone(parent=None, name=None, **hooks)
  variables = {**variables, "params": {**variables["params"], **held}}
  return copy.apply(variables, *args, **kwargs)


def _with_hook(name: str, op: Any) -> Any:
  """A product that flax does through a hook `op(x, w, ...)`."""

  def product(module, packed, variables, *args, **kwargs):
    w = packed["kernel"]
    held = {key: value.dequantize() for key, value in packed.items()}
    held["kernel"] = jnp.zeros(w.shape, w.dtype)

    def hook(x, placeholder, *args, **kwargs):
      # flax has promoted the placeholder to the type to compute in.
      return op(x, w, *args, dtype=placeholder.dtype, **kwargs)

    return _alone(module, variables, held, {name: hook}, *args, **kwargs)

  return product


def _einsum(module, packed, variables, inputs, einsum_str=None):
  """`nn.Einsum`, which has no hook."""
  w = packed["kernel"]
  equation = (einsum_str or module.einsum_str).replace(" ", "")
  bias = qtensor.dequantize(variables["params"].get("bias"))
  x, bias = module.promote_dtype(inputs, bias, dtype=module.dtype)
  y = ops.einsum(equation, x, w, dtype=x.dtype, precision=module.precision)
  if bias is None:
    return y
  operands, out = equation.split("->")
  kernel = operands.split(",")[1]
  sizes = dict(zip(kernel, w.shape, strict=True))
  x_dims = operands.split(",")[0]
  shape = [1 if c in x_dims else sizes.get(c, 1) for c in out.replace(".", "")]
  return y + bias.reshape(shape)


def _embed(module, packed, variables, inputs):
  """`nn.Embed`, which has no hook either."""
  del variables
  if not jnp.issubdtype(inputs.dtype, jnp.integer):
    raise ValueError(f"nn.Embed takes integers, got {inputs.dtype}")
  if module.num_embeddings == 1:
    inputs = jnp.zeros_like(inputs)
  rows = ops.take(packed["embedding"], inputs)
  return rows if module.dtype is None else rows.astype(module.dtype)


def _attend(module, packed, variables, query):
  """The product with a table, `query @ embedding.T`."""
  del variables
  contract = (((query.ndim - 1,), (1,)), ((), ()))
  table = packed["embedding"]
  return ops.dot_general(query, table, contract, dtype=module.dtype)


_PRODUCTS: dict[tuple[type[nn.Module], str], Callable[..., Any]] = {
  (nn.Dense, "__call__"): _with_hook("dot_general", ops.dot_general),
  (nn.DenseGeneral, "__call__"): _with_hook("dot_general", ops.dot_general),
  (nn.Conv, "__call__"): _with_hook("conv_general_dilated", ops.conv),
  (nn.Einsum, "__call__"): _einsum,
  (nn.Embed, "__call__"): _embed,
  (nn.Embed, "attend"): _attend,
}
