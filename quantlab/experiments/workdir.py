"""The folder of a run: what is finished, and whether it is still the same run.

  run.json               config, hashes of weights and data, environment
  ptq.log                the log, of all starts
  float/                 embeddings and scores of the float model
  <variant>/leaves/      quantized leaves, one checkpoint each, until the
  <variant>/params/      checkpoint of the whole model replaces them
  <variant>/result.json  scores and rows per layer: the variant is finished
  report.json, report.csv, report.png

Each of them appears whole or not at all, so a run that is killed at any moment
goes on where it was.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from quantlab.experiments import checkpoint, configs

PyTree = Any


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Raises what a person can mend as an `InputError` of one line."""
  try:
    yield
  except configs.InputError:
    raise
  except (ImportError, OSError, TypeError, ValueError) as error:
    line = str(error).strip().partition("\n")[0]
    raise configs.InputError(line or type(error).__name__) from error


class Workdir:
  """A run's folder; see the module's docstring.

  Attributes:
    root: the folder.
  """

  def __init__(self, root: str | os.PathLike[str]):
    """Makes the folder.

    Raises:
      InputError: it cannot be made or written.
    """
    self.root = pathlib.Path(root).expanduser()
    try:
      self.root.mkdir(parents=True, exist_ok=True)
      probe = self.root / ".probe"
      probe.touch()
      probe.unlink()
    except OSError as error:
      raise configs.InputError(
        f"workdir {self.root}: cannot be written: {error.strerror}"
      ) from error

  def begin(self, identity: Mapping[str, Any]) -> None:
    """Records what run this is, or checks that it is the recorded one.

    Args:
      identity: plain data.

    Raises:
      InputError: the folder holds another run; it says what differs.
    """
    file = self.root / "run.json"
    if not file.exists():
      write_json(file, identity)
      return
    recorded = read_json(file)
    changes = list(differences(recorded, identity))
    if changes:
      raise configs.InputError(
        f"workdir {self.root} holds another run: {'; '.join(changes)}. "
        "Choose another --workdir, or delete this one"
      )

  def leaf(self, variant: str, path: str) -> pathlib.Path:
    """Where a quantized leaf waits for the others."""
    return self.root / variant / "leaves" / path.replace("/", ".")

  def params(self, variant: str) -> pathlib.Path:
    """Where the packed model is."""
    return self.root / variant / "params"

  def finish_params(self, variant: str, params: PyTree) -> None:
    """Stores the packed model in place of its leaves."""
    checkpoint.save(self.params(variant), params)
    shutil.rmtree(self.root / variant / "leaves", ignore_errors=True)

  def result(self, variant: str) -> Any:
    """Reads the result of a finished variant; None before that."""
    file = self.root / variant / "result.json"
    return read_json(file) if file.exists() else None

  def finish(self, variant: str, result: Any) -> None:
    """Stores a variant's result, which marks it as finished."""
    write_json(self.root / variant / "result.json", result)


def restore(path: pathlib.Path) -> PyTree:
  """`checkpoint.restore` of a part of a run.

  Raises:
    InputError: it is damaged; says which file, and what to do.
  """
  try:
    return checkpoint.restore(path)
  except checkpoint.CheckpointError as error:
    raise configs.InputError(
      f"{error}; delete {path} to compute it again"
    ) from error


def differences(
  old: Any, new: Any, where: str = ""
) -> Iterator[str]:
  """Says where two pieces of plain data differ.

  Example:
    >>> list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}))
    ['a.b: 1 -> 3', 'a.c: 2 -> nothing']
  """
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    for key in dict.fromkeys([*old, *new]):
      parts = (side.get(key, _NOTHING) for side in (old, new))
      yield from differences(*parts, f"{where}.{key}" if where else key)
  elif old != new:
    yield f"{where}: {old!r} -> {new!r}"


class _Nothing:
  def __repr__(self) -> str:
    return "nothing"


_NOTHING = _Nothing()


def fingerprint(leaves: Mapping[str, Any]) -> str:
  """SHA-256 of arrays with their paths, types and shapes."""
  digest = hashlib.sha256()
  for path, leaf in leaves.items():
    array = np.asarray(leaf, order="C")
    digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def read_json(file: pathlib.Path) -> Any:
  """Reads a file of this folder; a damaged one is an `InputError`."""
  try:
    return json.loads(file.read_bytes())
  except ValueError as error:
    raise configs.InputError(
      f"{file}: is damaged: {error}; delete it to compute it again"
    ) from error


def write_json(file: pathlib.Path, content: Any) -> None:
  """Writes a file whole or not at all."""
  file.parent.mkdir(parents=True, exist_ok=True)
  new = file.with_name(f".{file.name}.new")
  with open(new, "w", encoding="utf-8") as f:
    json.dump(content, f, indent=2, allow_nan=False)
    f.flush()
    os.fsync(f.fileno())
  os.replace(new, file)
