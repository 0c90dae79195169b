"""Reads `pytorch_model.bin` without torch, and without running what is in it.

Such a file is a zip archive of raw tensors and a pickle that says where each
lies. A pickle may name any function for its reader to call; this reader knows
four, and refuses all else.
"""

import collections
from collections.abc import Iterable
import pathlib
import pickle
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

_DTYPES = {
  "DoubleStorage": "float64",
  "FloatStorage": "float32",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "LongStorage": "int64",
  "IntStorage": "int32",
  "ShortStorage": "int16",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "BoolStorage": "bool",
}


class _Tensor(NamedTuple):
  """Where a tensor lies: offset and strides count elements of its storage."""

  dtype: str
  storage: str
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class TorchFile:
  """The tensors of a file, each read when it is asked for.

  Args:
    file: what `torch.save` of a dict of tensors wrote, torch 1.6 or newer.

  Raises:
    ValueError: the file is broken, older, or holds something else.
  """

  def __init__(self, file: pathlib.Path):
    self._file = file
    try:
      self._archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
      raise ValueError(
        f"{file}: broken, or written by torch 1.5 or older; load and save it "
        "with torch once, or give safetensors"
      ) from None
    try:
      self._root, self._tensors = _index(self._archive)
    except (ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
      self._archive.close()
      raise ValueError(f"{file}: no dict of tensors: {error}") from None

  def __enter__(self) -> "TorchFile":
    return self

  def __exit__(self, *_: object) -> None:
    self._archive.close()

  def keys(self) -> Iterable[str]:
    """Names of the tensors."""
    return self._tensors.keys()

  def get_tensor(self, key: str) -> np.ndarray:
    """Reads one tensor.

    Raises:
      ValueError: the file holds fewer elements than the tensor has.
    """
    t = self._tensors[key]
    dtype = jnp.dtype(t.dtype)
    try:
      data = self._archive.read(f"{self._root}/data/{t.storage}")
    except (KeyError, zipfile.BadZipFile) as error:
      raise ValueError(f"{self._file}: tensor {key!r}: {error}") from None
    flat = np.frombuffer(data, dtype)
    # numpy checks no view against the memory below it.
    last = t.offset + sum(
      (n - 1) * s for n, s in zip(t.shape, t.strides, strict=True)
    )
    if 0 not in t.shape and (
      min(t.offset, *t.strides, 0) < 0 or last >= flat.size
    ):
      raise ValueError(f"{self._file}: tensor {key!r} is cut off")
    strides = [s * dtype.itemsize for s in t.strides]
    return np.lib.stride_tricks.as_strided(flat[t.offset :], t.shape, strides)


def _index(archive: zipfile.ZipFile) -> tuple[str, dict[str, _Tensor]]:
  """Returns the folder inside the archive and the tensors by name."""
  names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
  if len(names) != 1:
    raise ValueError(f"{len(names)} files data.pkl")
  with archive.open(names[0]) as stream:
    found = _Unpickler(stream).load()
  if not isinstance(found, dict) or not all(
    isinstance(value, _Tensor) for value in found.values()
  ):
    raise ValueError("it holds other objects")
  return names[0].removesuffix("/data.pkl"), dict(found)


class _Unpickler(pickle.Unpickler):
  """Builds dicts of `_Tensor`s, and nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _tensor
    if (module, name) == ("torch._utils", "_rebuild_parameter"):
      return _parameter
    if module == "torch" and name in _DTYPES:
      return _DTYPES[name]
    raise ValueError(f"it asks for {module}.{name}")

  def persistent_load(self, pid: Any) -> tuple[str, str]:
    _, dtype, storage, *_ = pid
    return dtype, storage


def _tensor(
  where: tuple[str, str], offset: int, shape: Any, strides: Any, *_: Any
) -> _Tensor:
  dtype, storage = where
  return _Tensor(dtype, storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
  return tensor
