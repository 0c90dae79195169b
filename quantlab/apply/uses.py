"""How often each weight of a layer is used, and by which units of its input.

Every function takes a module, the rank of its input, the shape of its kernel
and what else it is called with. It returns `uses(bits) -> bits`: from one
number for each element of the input to their sum over all uses of each weight,
which broadcasts to the kernel.
"""

from collections.abc import Callable, Iterable
from typing import Any

from flax import linen as nn
import jax
import numpy as np


def _dense(module, rank, weights):
  """Dense and DenseGeneral: the kernel is `[*batch, *contracted, *out]`."""

  def axes(value):
    value = value if isinstance(value, Iterable) else [value]
    return sorted(axis % rank for axis in value)

  batch = axes(getattr(module, "batch_dims", ()))
  shared = [*batch, *axes(getattr(module, "axis", -1))]
  out = range(rank, rank + len(weights) - len(shared))
  return _contracted(list(range(rank)), [*shared, *out])


def _einsum(module, rank, weights, einsum_str=None):
  """Einsum, with the dimensions of an ellipsis numbered from the right."""
  equation = (einsum_str or module.einsum_str).replace(" ", "")
  inputs, kernel = equation.split("->")[0].split(",")

  def names(dims, rank):
    before, dots, after = dims.partition("...")
    free = rank - len(before) - len(after)
    return [*before, *(range(free, 0, -1) if dots else ()), *after]

  x, w = names(inputs, rank), names(kernel, len(weights))
  number = {name: i for i, name in enumerate(dict.fromkeys([*x, *w]))}
  return _contracted([number[n] for n in x], [number[n] for n in w])


def _contracted(x, w):
  """Uses in a product of arrays whose dimensions have these numbers."""
  shared = [dim for dim in w if dim in x]

  def uses(bits):
    sums = np.einsum(bits, x, shared)
    apart = [i for i, dim in enumerate(w) if dim not in x]
    return np.expand_dims(sums, apart)

  return uses


def _conv(module, rank, weights):
  """Conv: the kernel is `[*window, inputs of a group, outputs]`."""
  window = weights[:-2]
  dims = range(rank - 1 - len(window), rank - 1)

  def each(value):
    value = 1 if value is None else value
    return (value,) * len(window) if isinstance(value, int) else tuple(value)

  strides, apart, dilation = map(
    each, (module.strides, module.input_dilation, module.kernel_dilation)
  )
  spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]

  def along(slices):
    index = [slice(None)] * rank
    for dim, step in zip(dims, slices, strict=True):
      index[dim] = slice(None, None, step)
    return tuple(index)

  def uses(bits):
    widest = bits.max()
    shape = list(bits.shape)
    for dim, step in zip(dims, apart, strict=True):
      shape[dim] = (shape[dim] - 1) * step + 1
    x = np.full(shape, widest)
    x[along(apart)] = bits
    mode, pads = _padding(
      module.padding, [shape[i] for i in dims], spans, strides
    )
    fill = {"constant_values": widest} if mode == "constant" else {}
    sides = [(0, 0)] * (rank - 1 - len(window)) + pads + [(0, 0)]
    x = np.pad(x, sides, mode=mode, **fill)
    x = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(dims))
    x = x[along(strides)][(..., *(slice(None, None, d) for d in dilation))]
    sums = np.moveaxis(x.sum(tuple(range(rank - 1))), 0, -1)
    groups = module.feature_group_count
    sums = sums.reshape(*window, groups, weights[-2]).swapaxes(-1, -2)
    return np.repeat(sums, weights[-1] // groups, -1)

  return uses


def _padding(padding, shape, spans, strides):
  """How numpy pads as `nn.Conv` does."""
  if padding in ("CIRCULAR", "REFLECT"):
    mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
    return mode, [((k - 1) // 2, k // 2) for k in spans]
  if padding == "CAUSAL":
    return "constant", [(k - 1, 0) for k in spans]
  if isinstance(padding, str):
    return "constant", jax.lax.padtype_to_pads(shape, spans, strides, padding)
  if isinstance(padding, int):
    padding = [padding] * len(spans)
  return "constant", [(p, p) if isinstance(p, int) else p for p in padding]


BY_KIND: dict[type[nn.Module], Callable[..., Any]] = {
  nn.Dense: _dense,
  nn.DenseGeneral: _dense,
  nn.Conv: _conv,
  nn.Einsum: _einsum,
}
