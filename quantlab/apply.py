"""Runs any linen model from packed weights, through flax's own interceptor.

A module that would read a quantized parameter is run once more on its own, with
a placeholder in that parameter's place and flax's hook for the product set to
`kernels.ops`. So its dtype promotion, bias and padding stay flax's. Nothing
reads the placeholder, and under `jit` it is never made.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from quantlab.core import qtensor
from quantlab.kernels import ops

Array = jax.Array
PyTree = Any


def apply(
  model: nn.Module, variables: PyTree, *args: Any, **kwargs: Any
) -> Any:
  """`model.apply(variables, *args, **kwargs)`, with quantized parameters.

  Dense, DenseGeneral, Conv, Einsum and Embed, and so the recurrent cells and
  attention made of them, send their products to `kernels.ops`. Any other module
  that owns a quantized parameter gets it dequantized.

  Args:
    model: an unbound linen module.
    variables: its variables; any parameter may be quantized.
    *args: of the model's method.
    **kwargs: of `model.apply`, such as `method`, `rngs`, `mutable`.

  Returns:
    What `model.apply` returns.

  Example:
    >>> import quantlab as ql
    >>> model = nn.Dense(8)
    >>> params = model.init(jax.random.key(0), jnp.ones((1, 32)))["params"]
    >>> plan = ql.by_path([("bias", ql.keep()), ("kernel", ql.rtn(8))])
    >>> packed = ql.quantize(plan, params)
    >>> apply(model, {"params": packed}, jnp.ones((1, 32))).shape
    (1, 8)
  """
  with nn.intercept_methods(_intercept):
    return model.apply(variables, *args, **kwargs)


def _intercept(next_method, args, kwargs, context):
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
    # follows runs on a module of its own, and so does its setup.
    return None
  if method == "__call__" and type(module) in _PRODUCTS:
    product = _PRODUCTS[type(module)]
    return product(module, packed, variables, *args, **kwargs)
  held = {name: w.dequantize() for name, w in packed.items()}
  return _rerun(module, variables, held, method, *args, **kwargs)


def _rerun(module, variables, held, method, *args, hooks=None, **kwargs):
  """Runs a method of a detached copy of a module, with some params replaced."""
  copy = module.clone(parent=None, name=None, **(hooks or {}))
  variables = {**variables, "params": {**variables["params"], **held}}
  return copy.apply(variables, *args, method=method, **kwargs)


def _with_hook(name: str, op: Any) -> Any:
  """A product that flax does through a hook `op(x, w, ...)`."""

  def product(module, packed, variables, *args, **kwargs):
    w = packed["kernel"]
    held = {key: value.dequantize() for key, value in packed.items()}
    held["kernel"] = jnp.zeros(w.shape, w.dtype)

    def hook(x, placeholder, *args, **kwargs):
      # flax has promoted the placeholder to the type to compute in.
      return op(x, w, *args, dtype=placeholder.dtype, **kwargs)

    hooks = {name: hook}
    return _rerun(
      module, variables, held, "__call__", *args, hooks=hooks, **kwargs
    )

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


_PRODUCTS = {
  nn.Dense: _with_hook("dot_general", ops.dot_general),
  nn.DenseGeneral: _with_hook("dot_general", ops.dot_general),
  nn.Conv: _with_hook("conv_general_dilated", ops.conv),
  nn.Einsum: _einsum,
  nn.Embed: _embed,
}
