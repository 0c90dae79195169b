"""Trees as JSON, and back: structure, classes and static fields.

A scalar is itself; anything else is `{kind: content}`, where the kind is the
name of a class from a fixed list. Arrays are set aside and numbered.
"""

import dataclasses
import functools
import re
from typing import Any

from flax import core as flax_core
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quantlab.core import (
  base,
  gates,
  grids,
  histograms,
  parameterization,
  qtensor,
  sparse,
  stored,
)

# What a tree may be made of, besides arrays and scalars. One more dataclass or
# NamedTuple is one more name here.
_CLASSES: dict[str, Any] = {
  cls.__name__: cls
  for cls in [
    *(dict, flax_core.FrozenDict, list, tuple),
    *(base.IntSpec, base.Range, base.Seen, base.Since, base.Moments),
    base.State,
    *(gates.Gate, histograms.Histogram, parameterization.Learned),
    *(grids.Affine, grids.Bounded, grids.Codebook, grids.Labelled),
    *(grids.Raw, grids.Tails),
    *(qtensor.QTensor, qtensor.Sum, qtensor.Window),
    *(stored.Digits, sparse.GapCoded, sparse.Marks, stored.Packed),
    *(stored.Pair, sparse.Sparse),
    *(nn.Partitioned, nn.LogicallyPartitioned),
  ]
}
_MAPPINGS = ("dict", "FrozenDict", "nnx.State")
_NNX = ("State", "Variable", "Param", "BatchStat", "Cache", "Intermediate")


def encode(tree: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Describes a tree in JSON and collects its arrays.

  Args:
    tree: what `decode` will return.

  Returns:
    `{"tree": ..., "arrays": ...}` of plain data, and the arrays by name, as
    they are to be stored; empty arrays are all in their description.

  Raises:
    TypeError: something in the tree cannot be stored; names its path.
  """
  arrays: dict[str, np.ndarray] = {}
  specs: list[dict[str, Any]] = []
  node = _encode(tree, "", arrays, specs)
  return {"tree": node, "arrays": specs}, arrays


def _encode(x: Any, at: str, arrays: dict, specs: list) -> Any:
  """A tree as JSON: a scalar is itself, all else is `{kind: content}`."""
  if x is None or type(x) in (bool, int, str):
    return x
  if type(x) is float:
    return {"float": x.hex()}  # JSON has no nan and no inf
  if isinstance(x, np.dtype | type(jnp.float32)):
    return {"dtype": jnp.dtype(x).name}
  if isinstance(x, jax.Array | np.generic) or type(x) is np.ndarray:
    specs.append(_spec(x, at, arrays, len(specs)))
    return {"array": len(specs) - 1}
  kind, parts = _parts(x, at)

  def inside(name, value):
    return _encode(value, f"{at}/{name}" if at else str(name), arrays, specs)

  if isinstance(parts, dict):
    return {kind: [[inside("", k), inside(k, v)] for k, v in parts.items()]}
  return {kind: [inside(i, part) for i, part in enumerate(parts)]}


def _parts(x: Any, at: str) -> tuple[str, Any]:
  """The kind of a container and its parts, by name if they have names."""
  known = _nnx() if type(x).__module__.startswith("flax.nnx.") else _CLASSES
  kind = next((name for name, cls in known.items() if cls is type(x)), None)
  if kind is None:
    where, what = at or "the tree", type(x).__qualname__
    raise TypeError(f"{where}: cannot store a {what}")
  if kind in _MAPPINGS:
    return kind, dict(getattr(x, "raw_mapping", x))
  if known is not _CLASSES:
    return kind, {"value": x.get_raw_value(), "metadata": x.get_metadata()}
  if dataclasses.is_dataclass(x):
    return kind, {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
  return kind, x._asdict() if hasattr(x, "_asdict") else list(x)


def decode(node: Any, leaves: list[Any]) -> Any:
  """The inverse of `encode`.

  Args:
    node: the JSON.
    leaves: the arrays, in the order of their descriptions.

  Returns:
    The tree.

  Raises:
    ValueError: a class is unknown.
  """
  if not isinstance(node, dict):
    return node
  [(kind, content)] = node.items()
  if kind == "array":
    return leaves[content]
  if kind in ("float", "dtype"):
    return float.fromhex(content) if kind == "float" else jnp.dtype(content)
  known = _nnx() if kind.startswith("nnx.") else _CLASSES
  if kind not in known:
    raise ValueError(f"unknown class {kind!r}")
  cls = known[kind]
  if cls in (list, tuple):
    return cls(decode(part, leaves) for part in content)
  parts = {decode(k, leaves): decode(v, leaves) for k, v in content}
  if kind in _MAPPINGS:
    return cls(parts)
  return cls(**parts) if known is _CLASSES else _variable(cls, **parts)


@functools.cache
def _nnx() -> dict[str, Any]:
  from flax import nnx  # takes a second, and few trees need it

  return {f"nnx.{name}": getattr(nnx, name) for name in _NNX}


def _variable(cls: Any, value: Any, metadata: dict[str, Any]) -> Any:
  # Not called with the value: a constructor may convert, shard or refuse it.
  structure = jax.tree.structure(cls(0, **metadata))
  return jax.tree.unflatten(structure, [value])


def _spec(x: Any, at: str, arrays: dict, index: int) -> dict[str, Any]:
  """Describes an array, and puts what orbax will store into `arrays`."""
  number = any(jnp.issubdtype(x.dtype, t) for t in (np.bool_, np.number))
  if not number or not x.dtype.isnative or x.dtype.char in "gG":  # long doubles
    raise TypeError(f"{at or 'the tree'}: cannot store arrays of {x.dtype}")
  name = f"{index}.{re.sub(r'[^A-Za-z0-9_-]+', '.', at)[-99:]}".strip(".")
  if x.size:  # orbax stores no empty arrays: theirs is all in the shape
    array = np.asarray(x, order="C")
    # uint4, float8_e4m3 and more types of one byte are unknown to tensorstore.
    odd = array.itemsize == 1 and array.dtype.isbuiltin != 1
    arrays[name] = array.view(np.uint8) if odd else array
  kind = "numpy" if isinstance(x, np.ndarray) else "scalar"
  kind = "jax" if isinstance(x, jax.Array) else kind
  shape = list(x.shape)
  return {"name": name, "kind": kind, "dtype": x.dtype.name, "shape": shape}
