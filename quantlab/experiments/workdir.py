"""The folder of a run: what is finished, and whether it is still the same run.

  run.json               config and environment
  inputs.json            hashes of weights and data
  ptq.log                the log, of all starts
  trained/               of a model that the job trains: its weights so far
  float/                 outputs and scores of the float model
  sensitivity/           how much each weight matters, if a method asks
  acts/<plan>/           calibrated state of a plan for activations
  <variant>/leaves/      quantized leaves so far, one checkpoint each
  <variant>/params/      checkpoint of the whole packed model
  <variant>/result.json  scores and rows per layer: the variant is finished
  report.json, report.csv, report.png

Each of them appears whole or not at all, so a run that is killed at any moment
goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from quantlab import checkpoint
from quantlab.experiments import configs

PyTree = Any

_LOG = logging.getLogger(__name__)


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

  def begin(
    self, identity: Mapping[str, Any], environment: Mapping[str, Any]
  ) -> None:
    """Records what run this is, or checks that it is the recorded one.

    Args:
      identity: plain data that must not change. What is finished would not
        belong to the rest.
      environment: plain data whose changes are only worth a warning.

    Raises:
      InputError: the folder holds another run; it says what differs.
    """
    run = {"identity": identity, "environment": environment}
    recorded = self._recorded("run.json", run)
    self._refuse(differences(recorded["identity"], identity))
    for change in differences(recorded["environment"], environment):
      _LOG.warning("what is finished in %s is older: %s", self.root, change)

  def expect(self, inputs: Mapping[str, Any]) -> None:
    """Records what the run works on, or checks that it is the same again.

    Args:
      inputs: plain data that must not change, known once all is loaded.

    Raises:
      InputError: the folder holds another run; it says what differs.
    """
    self._refuse(differences(self._recorded("inputs.json", inputs), inputs))

  def _recorded(self, name: str, content: Mapping[str, Any]) -> Any:
    file = self.root / name
    if not file.exists():
      write_json(file, content)
    return read_json(file)

  def _refuse(self, differences: Iterator[str]) -> None:
    changes = list(differences)
    if changes:
      raise configs.InputError(
        f"workdir {self.root} holds another run: {'; '.join(changes)}. "
        "Choose another --workdir, or delete this one"
      )

  def leaf(self, variant: str, path: str) -> pathlib.Path:
    """Where a quantized leaf waits for the others."""
    return self.root / variant / "leaves" / path

  def params(self, variant: str) -> pathlib.Path:
    """Where the packed model is."""
    return self.root / variant / "params"

  def result(self, variant: str) -> Any:
    """Reads the result of a finished variant; None before that."""
    file = self.root / variant / "result.json"
    return read_json(file) if file.exists() else None

  def finish(self, variant: str, result: Any) -> None:
    """Stores a variant's result, which marks it as finished."""
    write_json(self.root / variant / "result.json", result)

  def tidy(self, variant: str) -> None:
    """Removes the leaves of a finished variant: the whole model has them."""
    shutil.rmtree(self.root / variant / "leaves", ignore_errors=True)


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


def kept(path: pathlib.Path, compute: Callable[[], PyTree]) -> PyTree:
  """What is stored at `path`, or what `compute` gives, which is stored.

  Raises:
    InputError: it is damaged, or cannot be stored.
  """
  if path.exists():
    return restore(path)
  found = compute()
  with configs.explained():
    checkpoint.save(path, found)
  return found


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
  """Says where two pieces of plain data differ.

  Example:
    >>> list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}))
    ['a.b: 1 -> 3', 'a.c: 2 -> nothing']
  """
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    for key in dict.fromkeys([*old, *new]):
      yield from differences(
        old.get(key, _NOTHING),
        new.get(key, _NOTHING),
        f"{where}.{key}" if where else key,
      )
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
    raise configs.InputError(f"{file}: is damaged: {error}") from error


def write_json(file: pathlib.Path, content: Any) -> None:
  """Writes a file whole or not at all."""
  write_text(file, json.dumps(_strict(content), indent=2, allow_nan=False))


def write_text(file: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  file.parent.mkdir(parents=True, exist_ok=True)
  new = file.with_name(f".{file.name}.new")
  with open(new, "w", encoding="utf-8") as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
  os.replace(new, file)


def _strict(content: Any) -> Any:
  """JSON has neither nan nor inf: they become null."""
  if isinstance(content, Mapping):
    return {key: _strict(value) for key, value in content.items()}
  if isinstance(content, list | tuple):
    return [_strict(value) for value in content]
  if isinstance(content, float) and not math.isfinite(content):
    return None
  return content
