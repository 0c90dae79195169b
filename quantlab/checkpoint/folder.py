"""Checkpoints of quantized trees: exact, self-describing, checked on reading.

A checkpoint is a folder that holds

  tree.json   structure, classes and static fields of the tree, dtype and shape
              of its arrays, SHA-256 of itself and of every file below;
  arrays/     the arrays, uncompressed, as orbax stores them: array i at `path`
              is the file `<i>.<path>/0.0` (a 0 for each dimension).

So these data files add up to `ql.nbits(tree) / 8` bytes, and orbax alone can
read `arrays/`. Reading makes objects of known classes and runs no stored code.
"""

from collections.abc import Iterator
import contextlib
import functools
import glob
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any
import uuid

import jax
import jax.numpy as jnp
import numpy as np

from quantlab.checkpoint import structure

Path = str | os.PathLike[str]
PyTree = Any

_TREE, _ARRAYS = "tree.json", "arrays"
_HEADER = {"format": "quantlab checkpoint", "version": 1}


class CheckpointError(ValueError):
  """A folder is not a whole and unchanged checkpoint."""


def save(path: Path, tree: PyTree, *, overwrite: bool = False) -> None:
  """Stores a tree, all or nothing.

  It is written beside `path` and then renamed: whenever this stops, `path` is
  what it was or the new checkpoint.

  Args:
    path: the folder to make. One writer at a time.
    tree: dicts, lists, tuples, `nnx.State` and quantized tensors of arrays,
      scalars and strings. Sharded arrays are gathered.
    overwrite: replace the checkpoint at `path`.

  Raises:
    FileExistsError: `path` exists and `overwrite` is false, or it is something
      else than a checkpoint.
    TypeError: something in the tree cannot be stored; names its path.
    OSError: the disk is full or not writable. Nothing is lost.

  Example:
    >>> import tempfile
    >>> import quantlab as ql
    >>> params = {"kernel": ql.quantize(ql.rtn(3), jnp.eye(32)), "step": 7}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   save(f"{folder}/params", params)
    ...   restored = restore(f"{folder}/params")
    >>> restored["kernel"].codes.bits, restored["step"]
    (3, 7)
  """
  path = pathlib.Path(path).resolve()
  content, arrays = structure.encode(tree)
  new = path.with_name(f".{path.name}.new-{uuid.uuid4().hex}")
  with _writing(path):
    _tidy(path)
    _check_free(path, overwrite)
    try:
      (new / _ARRAYS).mkdir(parents=True)
      content["files"] = _write_arrays(new / _ARRAYS, arrays)
      _write_json(new / _TREE, _HEADER | content)
      _commit(new, path)
    finally:
      shutil.rmtree(new, ignore_errors=True)


def restore(path: Path, *, sharding: Any = None) -> PyTree:
  """Reads a tree as `save` got it, to the bit.

  Args:
    path: the folder.
    sharding: where jax arrays go, a `jax.sharding.Sharding` or a device; by
      default the default device. Numpy arrays stay numpy arrays.

  Returns:
    The tree.

  Raises:
    FileNotFoundError: there is nothing at `path`.
    CheckpointError: (a `ValueError`) what is there is no checkpoint, of another
      version, incomplete or changed; names the file.
  """
  path = pathlib.Path(path).resolve()
  if not (path / _TREE).exists() and _replaced(path).exists():
    path = _replaced(path)  # a writer was killed between two renames
  content = _read_json(path)
  with _reading(path):
    _check_files(path / _ARRAYS, content["files"])
    values = _read_arrays(path / _ARRAYS, content["arrays"])
  leaves = [_placed(*value, sharding) for value in values]
  with _reading(path):
    return structure.decode(content["tree"], leaves)


def _placed(value: np.ndarray, kind: str, sharding: Any) -> Any:
  """An array of the kind that was saved."""
  if kind != "jax":
    return value if kind == "numpy" else value[()]
  if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
    raise ValueError(f"a jax array is {value.dtype}: set jax_enable_x64")
  return jax.device_put(value, sharding)


@functools.cache
def _orbax() -> tuple[Any, Any]:
  from orbax import checkpoint as ocp

  # One file of plain bytes per array. Without orbax's Checkpointer: its rename
  # would not cover tree.json, and it writes down the time.
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
  return ocp, handler


def _write_arrays(folder: pathlib.Path, arrays: dict) -> dict[str, str]:
  """Writes arrays; returns the SHA-256 of every file, of theirs from memory."""
  ocp, handler = _orbax()
  if arrays:
    with _quiet():
      handler.save(folder, args=ocp.args.PyTreeSave(arrays))
  digests = {}
  for name, array in arrays.items():
    file = f"{name}/{'.'.join('0' * max(1, array.ndim))}"
    digests[file] = _sha256(array.reshape(-1).view(np.uint8).data)
    if (folder / file).stat().st_size != array.nbytes:
      raise OSError(f"{folder / file} was not written whole")
  for file in filter(pathlib.Path.is_file, sorted(folder.rglob("*"))):
    name = file.relative_to(folder).as_posix()
    if name not in digests:
      digests[name] = _file_sha256(file)
  return digests


def _check_files(folder: pathlib.Path, files: dict[str, str]) -> None:
  # All before orbax reads any: a damaged shape would make it end the process.
  for name, digest in files.items():
    if not (folder / name).is_file():
      raise CheckpointError(f"{folder / name}: is missing")
    if _file_sha256(folder / name) != digest:
      raise CheckpointError(f"{folder / name}: does not match its checksum")


def _read_arrays(
  folder: pathlib.Path, specs: list[dict[str, Any]]
) -> list[tuple[np.ndarray, str]]:
  """The arrays, with the kind that each of them was."""
  ocp, handler = _orbax()
  as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
  args = {s["name"]: as_numpy for s in specs if 0 not in s["shape"]}
  values = {}
  if args:
    with _quiet():
      args = ocp.args.PyTreeRestore(restore_args=args)
      values = handler.restore(folder, args=args)

  def one(name, kind, dtype, shape):
    dtype = jnp.dtype(dtype)
    value = values[name] if 0 not in shape else np.empty(shape, dtype)
    return value.view(dtype), kind

  return [one(**spec) for spec in specs]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps orbax from logging the traceback of what it raises as well."""

  def is_other(record):
    return "orbax" not in record.pathname

  logger = logging.getLogger("absl")
  logger.addFilter(is_other)
  try:
    yield
  finally:
    logger.removeFilter(is_other)


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
  digest = _sha256(json.dumps(content).encode())
  with open(file, "w", encoding="utf-8") as f:
    json.dump(content | {"sha256": digest}, f)
    f.flush()
    os.fsync(f.fileno())  # as orbax does with the arrays


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  file = path / _TREE
  if not path.exists():
    raise FileNotFoundError(f"{path}: there is no checkpoint")
  if not file.is_file():
    raise CheckpointError(f"{path}: is no checkpoint, it has no {_TREE}")
  try:
    content = json.loads(file.read_bytes())
  except (ValueError, RecursionError) as error:
    raise CheckpointError(f"{file}: is damaged: {_line(error)}") from error
  content = content if isinstance(content, dict) else {}
  found = {name: content.get(name) for name in _HEADER}
  if found != _HEADER:
    raise CheckpointError(f"{file}: is {found}, this quantlab reads {_HEADER}")
  if content.pop("sha256", None) != _sha256(json.dumps(content).encode()):
    raise CheckpointError(f"{file}: does not match its checksum")
  return content


def _check_free(path: pathlib.Path, overwrite: bool) -> None:
  if not path.exists() or (path.is_dir() and not any(path.iterdir())):
    return
  if not overwrite:
    raise FileExistsError(f"{path}: exists; overwrite=True would replace it")
  if not (path / _TREE).is_file():
    raise FileExistsError(f"{path}: is no checkpoint and is not replaced")


def _replaced(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.replaced")


def _commit(new: pathlib.Path, path: pathlib.Path) -> None:
  """Puts a whole checkpoint in its place. A folder has no atomic exchange."""
  old = _replaced(path)
  if path.exists():
    os.rename(path, old)
  try:
    os.rename(new, path)
  except OSError:
    if old.exists():
      os.rename(old, path)
    raise
  shutil.rmtree(old, ignore_errors=True)


def _tidy(path: pathlib.Path) -> None:
  """Ends what a killed writer left."""
  old = _replaced(path)
  if old.exists() and not (path / _TREE).exists():
    os.rename(old, path)
  for leftover in [old, *path.parent.glob(f".{glob.escape(path.name)}.new-*")]:
    shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  """Names the checkpoint in what is wrong with it."""
  try:
    yield
  except CheckpointError:
    raise
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    raise CheckpointError(f"{path}: {_line(error)}") from error


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
  """Raises what stops a save as an `OSError` that names the checkpoint."""
  try:
    yield
  except FileExistsError:
    raise
  except (OSError, RuntimeError, ValueError) as error:
    # Tensorstore raises ValueError with the system's code in the text.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    code = int(found[1]) if found else getattr(error, "errno", None)
    if code is None:
      raise OSError(f"{path}: cannot be saved: {_line(error)}") from error
    text = f"cannot save a checkpoint: {os.strerror(code)}"
    raise OSError(code, text, str(path)) from error


def _line(error: BaseException) -> str:
  return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _sha256(data: bytes | memoryview) -> str:
  return hashlib.sha256(data).hexdigest()


def _file_sha256(file: pathlib.Path) -> str:
  with open(file, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()
