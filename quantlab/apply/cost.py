"""What a network computes: multiply-accumulates and bit operations (BOP).

A layer is a module that multiplies its input with a kernel. A product of an
activation of a bits with a weight of w bits costs a w bit operations; BOP is
their sum over all multiply-accumulates. Counts are of one example, from shapes
alone, and exact: Python integers.

References:
  Bayesian Bits, arXiv 2005.07093: the cost of a layer, and the network's input
  at 8 bits. Reconstruction: where each weight or unit has bits of its own, each
  product is charged its own two.
"""

from collections.abc import (
  Callable,
  Collection,
  Mapping,
)
import dataclasses
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import ad_checkpoint
import numpy as np

from quantlab.apply import equations, uses
from quantlab.transforms import plan

PyTree = Any
Shape = tuple[int, ...]
Bits = Any
"""An integer, or an array of them that broadcasts to what it is about."""

FLOAT_BITS = 32
_MARK = "quantlab.cost"


class Call(NamedTuple):
  """One place of the program where a layer is called.

  Attributes:
    input: shape of the array at the layer's `in` site.
    times: how often it runs: steps of a scan, copies of a vmap.
    positions: how often each weight is used each time.
    uses: from bits of each element of the input to their sum over all uses of
      each weight, which broadcasts to the kernel.
  """

  input: Shape
  times: int
  positions: int
  uses: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer, as one example passes through it.

  Attributes:
    kernel: path of the kernel in the params.
    weights: shape of the kernel; inside `nn.scan` and `nn.vmap` of one index.
    first: its input is the network's own, or made of it without any variable,
      such as by a reshape or by pooling. In a scan only slices of an input are.
    calls: at least one.
  """

  kernel: str
  weights: Shape
  first: bool
  calls: tuple[Call, ...] = dataclasses.field(repr=False)

  @property
  def input(self) -> Shape:
    """Shape at the `in` site of the first call, with the batch axis of 1."""
    return self.calls[0].input

  @property
  def outputs(self) -> int:
    """How often each weight is used: positions, steps of time, calls."""
    return sum(call.times * call.positions for call in self.calls)

  @property
  def macs(self) -> int:
    """Multiply-accumulates."""
    return self.outputs * math.prod(self.weights)

  def bops(self, weight_bits: Bits, act_bits: Bits) -> int:
    """Bit operations; see the function `bops`."""
    weights, total = _checked("weights", weight_bits, self.weights), 0
    for call in self.calls:
      acts = _checked("activations", act_bits, call.input)
      if acts.ndim:
        used = call.uses(np.broadcast_to(acts, call.input))
      else:
        used = acts * call.positions
      charged = weights * used
      repeats = math.prod(self.weights) // charged.size
      total += call.times * repeats * int(charged.sum())
    return total


def layers(
  model: nn.Module, variables: PyTree, *args: Any, **kwargs: Any
) -> dict[str, Layer]:
  """The layers of a model and their multiply-accumulates.

  Layers are Dense, DenseGeneral, Conv and Einsum, and so those of recurrent
  cells and of attention. Products of two activations, as in attention, and what
  other modules do with arrays of their own, are no layer's; `products` counts
  all. Padded zeros count. So do all branches of a condition, but not what no
  output depends on.

  Args:
    model: an unbound linen module.
    variables: its variables, or their shapes.
    *args: of the model's method, with a batch of one; shapes will do.
    **kwargs: of `model.apply`.

  Returns:
    `{path of the layer: Layer}`, in the order of their calls. The activation
    that multiplies the weights is that at the site `<path>/in`.

  Raises:
    ValueError: the batch is not of one example, a module of another type has a
      kernel (such as `ConvTranspose`, or `OptimizedLSTMCell`, whose params fit
      `LSTMCell`), a layer is in a while loop, whose length is not known, or
      calls behind `nn.jit` share a program.

  Example:
    >>> import jax.numpy as jnp
    >>> model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Dense(2)])
    >>> x = jnp.ones((1, 8, 8, 3))
    >>> found = layers(model, model.init(jax.random.key(0), x), x)
    >>> {path: layer.macs for path, layer in found.items()}
    {'layers_0': 6912, 'layers_2': 512}
    >>> found["layers_0"].weights, found["layers_0"].outputs
    ((3, 3, 3, 4), 64)
    >>> bops(found, {"layers_0": 8, "layers_2": 4}, {"layers_2": 8})
    458752
  """
  shapes = [getattr(x, "shape", ()) for x in jax.tree.leaves((args, kwargs))]
  batches = [shape[0] for shape in shapes if shape]
  if batches[:1] not in ([], [1]):
    raise ValueError(f"give a batch of one example, got one of {batches[0]}")
  marked: list[_Marked] = []
  direct: dict[int, bool] = {}
  times: dict[int, int] = {}
  for step in equations.steps(model, variables, args, kwargs, _marking(marked)):
    name = str(step.eqn.params.get("name"))
    if not name.startswith(_MARK):
      continue
    _, end, number = name.split()
    mark, path = int(number), marked[int(number)].path
    if end == "in":
      direct[mark] = not step.depends
    elif mark in times:
      raise ValueError(
        f"{path}: nn.jit runs one program for several calls or modules, which "
        "cannot be told apart there; count the model without nn.jit"
      )
    else:
      copies = step.eqn.outvars[0].aval.size // marked[mark].size
      times[mark] = copies * equations.known(path, step)
  calls: dict[str, list[int]] = {}
  for mark in times:
    calls.setdefault(marked[mark].path, []).append(mark)
  return {
    path: Layer(
      "/".join(filter(None, (path, "kernel"))),
      marked[marks[0]].weights,
      all(direct[mark] for mark in marks),
      tuple(marked[mark].call._replace(times=times[mark]) for mark in marks),
    )
    for path, marks in calls.items()
  }


def products(
  model: nn.Module, variables: PyTree, *args: Any, **kwargs: Any
) -> int:
  """Multiply-accumulates of all matrix products and convolutions.

  With those of two activations, which no layer has. The args are as in
  `layers`; the variables are not quantized.

  Example:
    >>> import jax.numpy as jnp
    >>> model, x = nn.MultiHeadDotProductAttention(2), jnp.ones((1, 5, 8))
    >>> variables = model.init(jax.random.key(0), x)
    >>> found = layers(model, variables, x)
    >>> of_layers = sum(layer.macs for layer in found.values())
    >>> products(model, variables, x) - of_layers  # 2 * 5 * 5 * 8
    400
  """
  total = 0
  for step in equations.steps(model, variables, args, kwargs, equations.plain):
    name, params = step.eqn.primitive.name, step.eqn.params
    if name == "dot_general":
      x = step.eqn.invars[0].aval.shape
      (contracted, _), _ = params["dimension_numbers"]
      each = math.prod(x[axis] for axis in contracted)
    elif name == "conv_general_dilated":
      kernel, dims = step.eqn.invars[1].aval, params["dimension_numbers"]
      each = kernel.size // kernel.shape[dims.rhs_spec[0]]
    else:
      continue
    total += step.eqn.outvars[0].aval.size * each * equations.known(name, step)
  return total


def first(layers: Mapping[str, Layer]) -> list[str]:
  """The layers that read the network's input, and nothing before them."""
  return [path for path, layer in layers.items() if layer.first]


def bops(
  layers: Mapping[str, Layer],
  weight_bits: Mapping[str, Bits],
  act_bits: Mapping[str, Bits],
  *,
  input_bits: int = 8,
  inputs: Collection[str] | None = None,
) -> int:
  """Bit operations of one example.

  Where bits are an array, each product is charged the bits of its weight and of
  its activation, and a padded zero the most bits of that input; so an array of
  equal bits costs what one number costs.

  Args:
    layers: of the model.
    weight_bits: by path of the layer; an integer, or an array of them that
      broadcasts to the kernel. What is missing counts 32.
    act_bits: of the layer's input, likewise.
    input_bits: of the inputs of the network.
    inputs: paths of the layers that read these; by default `first(layers)`.

  Raises:
    ValueError: a path is no layer's, the input of one has two widths, or bits
      are no integers, negative, or do not fit their shape.

  References:
    arXiv 2005.07093. That of padded zeros is a choice of ours.
  """
  inputs = first(layers) if inputs is None else inputs
  for name, paths in (
    ("weight_bits", weight_bits),
    ("act_bits", act_bits),
    ("inputs", inputs),
  ):
    unknown = [path for path in paths if path not in layers]
    if unknown:
      raise ValueError(f"{name}: {unknown} are not among {[*layers]}")
  twice = [path for path in inputs if path in act_bits]
  if twice:
    raise ValueError(
      f"act_bits: {twice} read the network's input, which has {input_bits=}"
    )
  acts = {**act_bits, **dict.fromkeys(inputs, input_bits)}
  total = 0
  for path, layer in layers.items():
    with plan.naming(path):
      total += layer.bops(
        weight_bits.get(path, FLOAT_BITS), acts.get(path, FLOAT_BITS)
      )
  return total


def share(bops: int, layers: Mapping[str, Layer]) -> float:
  """Bit operations as a part of those at 32 by 32 bits (RBOP)."""
  macs = sum(layer.macs for layer in layers.values())
  return bops / (FLOAT_BITS**2 * macs)


def _checked(name: str, bits: Bits, shape: Shape) -> np.ndarray:
  bits = np.asarray(bits)
  if bits.dtype.kind not in "iu" or bits.min() < 0:
    raise ValueError(f"bits of {name} are integers of at least 0, got {bits}")
  fits = bits.ndim <= len(shape) and all(
    n in (1, size)
    for n, size in zip(bits.shape[::-1], shape[::-1], strict=False)
  )
  if not fits:
    raise ValueError(f"bits of {name} are of {bits.shape=}, not of {shape=}")
  return bits.astype(np.int64)


class _Marked(NamedTuple):
  """A call of a layer while the model is traced."""

  path: str
  weights: Shape
  size: int
  call: Call


def _marking(marked: list[_Marked]) -> Callable[..., Any]:
  """An interceptor that names both ends of each call of a layer."""
  inside = []

  def marks(next_method, module, use, inputs, *args, **kwargs):
    number = len(marked)
    shape = inputs.shape
    inputs = ad_checkpoint.checkpoint_name(inputs, f"{_MARK} in {number}")
    out = next_method(inputs, *args, **kwargs)
    weights = nn.unbox(module.variables["params"]["kernel"]).shape
    used = use(module, len(shape), weights, *args, **kwargs)
    positions = int(used(np.broadcast_to(1, shape)).flat[0])
    call = Call(shape, 1, positions, used)
    marked.append(_Marked("/".join(module.path), weights, out.size, call))
    return ad_checkpoint.checkpoint_name(out, f"{_MARK} out {number}")

  def intercept(next_method, args, kwargs, context):
    module = context.module
    # What a layer calls is itself: by super(), or a copy with packed weights.
    if inside or context.method_name != "__call__" or module.scope is None:
      return next_method(*args, **kwargs)
    use = next(
      (u for kind, u in uses.BY_KIND.items() if isinstance(module, kind)), None
    )
    if use is None:
      if "kernel" in module.variables.get("params", {}):
        raise ValueError(
          f"{'/'.join(module.path)}: it is not known what the kernel of "
          f"{type(module).__name__} multiplies, only that of "
          f"{[kind.__name__ for kind in uses.BY_KIND]}"
        )
      return next_method(*args, **kwargs)
    inside.append(module)
    try:
      return marks(next_method, module, use, *args, **kwargs)
    finally:
      inside.pop()

  return intercept
