"""Reads published weights, one file or sharded, into a tree of parameters.

Shape letters: K input and N output of a kernel, H and W of its window.
"""

from collections.abc import Mapping
import contextlib
import pathlib
from typing import Any, Protocol

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from quantlab import hub
from quantlab.models import torch_file

# What a folder may hold, in the order of preference.
_SAFETENSORS = "model.safetensors"
_TORCH = "pytorch_model.bin"
# Published in some files although they are constants.
_BUFFERS = (
  "position_ids",
  "token_type_ids",
  "rotary_emb.inv_freq",
  "num_batches_tracked",
)
# Modules that checkpoints put beside what they name with a prefix.
_HEADS = ("classifier", "lm_head")


class Names(Protocol):
  """How files name their tensors; `families.Family` is one."""

  @property
  def prefix(self) -> str:
    """What a checkpoint with a head puts before all names but the head's."""
    ...

  def keys(self, path: tuple[str, ...]) -> tuple[str, ...]:
    """Names that a parameter may have in a file, without the prefix."""
    ...


def read(
  folder: pathlib.Path,
  names: Names,
  like: Mapping[str, Any],
  *,
  dtype: Any = jnp.float32,
) -> dict[str, Any]:
  """Fills a tree of parameters from a folder's files.

  Tensors are copied one by one, so memory never holds more than the result and
  one tensor. A top module of the files is read in full or, like a head that
  `like` leaves out, not at all.

  Args:
    folder: holds `model.safetensors` or else `pytorch_model.bin`, whole or as
      shards and their index.
    names: how the files name their tensors.
    like: nested dict whose leaves have `shape`; kernels `[K, N]` or
      `[H, W, K, N]`, which the files hold as `[N, K]` or `[N, K, H, W]`.
    dtype: of the result; None keeps the file's.

  Returns:
    A tree as `like`, of jax arrays.

  Raises:
    FileNotFoundError: no weights in the folder, or a shard is missing.
    ValueError: a broken file; a tensor that is missing, left over, of
      another shape or not of floats.
  """
  with contextlib.ExitStack() as stack:
    source, where = _open(folder, stack)
    prefixed = any(key.startswith(names.prefix) for key in where)
    prefix = names.prefix if prefixed else ""
    params, used = {}, set()
    for path, leaf in traverse_util.flatten_dict(like).items():
      keys = [_full(prefix, key) for key in names.keys(path)]
      key = next((key for key in keys if key in where), None)
      if key is None:
        raise ValueError(
          f"{source}: tensor {keys[0]!r} is missing; "
          f"{'/'.join(path)} needs it with shape {_torch_shape(path, leaf)}"
        )
      used.add(key)
      params[path] = _tensor(*where[key], key, path, leaf, dtype)
    _check_leftovers(source, set(where), used, prefix)
  return traverse_util.unflatten_dict(params)


def _full(prefix: str, key: str) -> str:
  return key if key.startswith(_HEADS) else prefix + key


def _open(
  folder: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[pathlib.Path, dict[str, tuple[pathlib.Path, Any]]]:
  """Returns the file to blame and, per key, its file and open handle."""
  source, files = _files(folder)
  where = {}
  for file in files:
    if not file.is_file():
      raise FileNotFoundError(
        f"{file}: no such file; weights are read from safetensors, or from "
        f"{_TORCH} without them"
      )
    handle = stack.enter_context(_handle(file))
    where |= dict.fromkeys(handle.keys(), (file, handle))
  return source, where


def _files(folder: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """Returns the file or index to blame, and the files to read."""
  for name in (_SAFETENSORS, _TORCH):
    if (folder / name).is_file():
      return folder / name, [folder / name]
    index = folder / f"{name}.index.json"
    if index.is_file():
      shards = set(hub.read_json(index).get("weight_map", {}).values())
      return index, [folder / shard for shard in sorted(shards)]
  return folder / _SAFETENSORS, [folder / _SAFETENSORS]


def _handle(file: pathlib.Path) -> Any:
  import safetensors

  if file.suffix != ".safetensors":
    return torch_file.TorchFile(file)
  try:
    return safetensors.safe_open(file, "np")
  except safetensors.SafetensorError as error:
    raise ValueError(f"{file}: broken safetensors file: {error}") from None


def _tensor(
  file: pathlib.Path,
  handle: Any,
  key: str,
  path: tuple[str, ...],
  leaf: Any,
  dtype: Any,
) -> jax.Array:
  tensor = handle.get_tensor(key)
  if tensor.shape != _torch_shape(path, leaf):
    raise ValueError(
      f"{file}: tensor {key!r} has shape {tensor.shape}, but the config asks "
      f"for {_torch_shape(path, leaf)}"
    )
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(f"{file}: tensor {key!r} has dtype {tensor.dtype}")
  if path[-1] == "kernel":
    tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
  return jnp.asarray(tensor, dtype)


def _torch_shape(path: tuple[str, ...], leaf: Any) -> tuple[int, ...]:
  if path[-1] != "kernel":
    return leaf.shape
  *window, inputs, outputs = leaf.shape
  return (outputs, inputs, *window)


def _check_leftovers(
  source: pathlib.Path, keys: set[str], used: set[str], prefix: str
) -> None:
  """Refuses unread tensors of a module that is read: the config is wrong."""

  def root(key: str) -> str:
    return key.removeprefix(prefix).partition(".")[0]

  roots = {root(key) for key in used}
  left = sorted(
    key
    for key in keys - used
    if root(key) in roots and not key.endswith(_BUFFERS)
  )
  if left:
    raise ValueError(
      f"{source}: {len(left)} tensors have no place in the model that the "
      f"config describes; the first is {left[0]!r}"
    )
