"""Reads safetensors files, one or sharded, into a tree of parameters.

Shape letters: K input and N output of a kernel.
"""

from collections.abc import Mapping
import contextlib
import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from quantlab import hub
from quantlab.models import families

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Published in some files although they are constants.
_BUFFERS = ("position_ids", "token_type_ids")


def read(
  folder: pathlib.Path,
  family: families.Family,
  like: Mapping[str, Any],
  *,
  dtype: Any = jnp.float32,
) -> dict[str, Any]:
  """Fills a tree of parameters from a folder's safetensors.

  Tensors are copied one by one out of the memory-mapped files, so memory
  never holds more than the result and one tensor. Heads and poolers stay
  unread.

  Args:
    folder: holds `model.safetensors`, or shards and their index.
    family: how the files name their tensors.
    like: nested dict whose leaves have `shape`; kernels `[K, N]`, which the
      files hold as `[N, K]`.
    dtype: of the result; None keeps the file's.

  Returns:
    A tree as `like`, of jax arrays.

  Raises:
    FileNotFoundError: no safetensors in the folder, or a shard is missing.
    ValueError: a broken file; a tensor that is missing, left over, of
      another shape or not of floats.
  """
  with contextlib.ExitStack() as stack:
    source, where = _open(folder, stack)
    prefixed = any(key.startswith(family.prefix) for key in where)
    prefix = family.prefix if prefixed else ""
    params, used = {}, set()
    for path, leaf in traverse_util.flatten_dict(like).items():
      names = [prefix + key for key in family.keys(path)]
      key = next((name for name in names if name in where), None)
      if key is None:
        raise ValueError(
          f"{source}: tensor {names[0]!r} is missing; "
          f"{'/'.join(path)} needs it with shape {_torch_shape(path, leaf)}"
        )
      used.add(key)
      params[path] = _tensor(*where[key], key, path, leaf, dtype)
    _check_leftovers(source, set(where) - used, family, prefix)
  return traverse_util.unflatten_dict(params)


def _open(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[pathlib.Path, dict[str, tuple[pathlib.Path, Any]]]:
  """Returns the file to blame and, per key, its file and open handle."""
  import safetensors

  source, files = folder / _SINGLE, [folder / _SINGLE]
  if not source.is_file() and (folder / _INDEX).is_file():
    source = folder / _INDEX
    shards = set(hub.read_json(source).get("weight_map", {}).values())
    files = [folder / shard for shard in sorted(shards)]
  where = {}
  for file in files:
    if not file.is_file():
      raise FileNotFoundError(
        f"{file}: no such file; weights are read from safetensors only"
      )
    try:
      handle = stack.enter_context(safetensors.safe_open(file, "np"))
    except safetensors.SafetensorError as error:
      raise ValueError(f"{file}: broken safetensors file: {error}") from None
    where |= dict.fromkeys(handle.keys(), (file, handle))
  return source, where


def _tensor(
  file: pathlib.Path,
  handle: Any,
  key: str,
  path: tuple[str, ...],
  leaf: Any,
  dtype: Any,
) -> jax.Array:
  shape = tuple(handle.get_slice(key).get_shape())
  if shape != _torch_shape(path, leaf):
    raise ValueError(
      f"{file}: tensor {key!r} has shape {shape}, but the config asks for "
      f"{_torch_shape(path, leaf)}"
    )
  tensor = handle.get_tensor(key)
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(f"{file}: tensor {key!r} has dtype {tensor.dtype}")
  return jnp.asarray(tensor.T if path[-1] == "kernel" else tensor, dtype)


def _torch_shape(path: tuple[str, ...], leaf: Any) -> tuple[int, ...]:
  return leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape


def _check_leftovers(
  source: pathlib.Path,
  keys: set[str],
  family: families.Family,
  prefix: str,
) -> None:
  """Refuses unread tensors of the encoder: the config would be wrong."""
  roots = {name.partition(".")[0] for name in family.tensors.values()}
  left = sorted(
    key
    for key in keys
    if key.startswith(prefix)
    and key.removeprefix(prefix).partition(".")[0] in roots
    and not key.endswith(_BUFFERS)
  )
  if left:
    raise ValueError(
      f"{source}: {len(left)} tensors have no place in the model that the "
      f"config describes; the first is {left[0]!r}"
    )
