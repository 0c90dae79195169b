import collections
import io
import os
import pickle
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from quantlab.models import torch_file

_STORAGES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
}
X = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


class _Rebuilt:
  """Pickles as the call that torch writes for a tensor."""

  def __init__(self, call, args):
    self._call, self._args = call, args

  def __reduce__(self):
    return self._call, self._args


class _Storage:
  def __init__(self, key, kind):
    self.key, self.kind = key, kind


class _Pickler(pickle.Pickler):
  def persistent_id(self, obj):
    if isinstance(obj, _Storage):
      return ("storage", obj.kind, obj.key, "cpu", 0)
    return None


@pytest.fixture(name="torch")
def _torch(monkeypatch):
  """A stand-in whose names are pickled as those of torch."""
  torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
  for name in _STORAGES.values():
    setattr(torch, name, type(name, (), {"__module__": "torch"}))

  def rebuild(*args):
    raise AssertionError

  for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
    call = types.FunctionType(rebuild.__code__, {}, name)
    call.__module__, call.__qualname__ = "torch._utils", name
    setattr(utils, name, call)
  torch._utils = utils
  monkeypatch.setitem(sys.modules, "torch", torch)
  monkeypatch.setitem(sys.modules, "torch._utils", utils)
  return torch


def _tensor(torch, key, dtype, shape, strides, offset=0):
  storage = _Storage(key, getattr(torch, _STORAGES[dtype]))
  args = (storage, offset, shape, strides, False, collections.OrderedDict())
  return _Rebuilt(torch._utils._rebuild_tensor_v2, args)


def _write(file, found, storages, root="archive"):
  stream = io.BytesIO()
  _Pickler(stream, 2).dump(found)
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr(f"{root}/data.pkl", stream.getvalue())
    for key, data in storages.items():
      archive.writestr(f"{root}/data/{key}", data.tobytes())
  return file


@pytest.mark.parametrize("dtype", _STORAGES)
def test_dtypes(tmp_path, torch, dtype):
  stored = (X * 7).astype(getattr(ml_dtypes, dtype, dtype))
  found = {"a.weight": _tensor(torch, "0", dtype, (3, 4), (4, 1))}
  file = _write(tmp_path / "x.bin", found, {"0": stored})
  with torch_file.TorchFile(file) as read:
    assert list(read.keys()) == ["a.weight"]
    tensor = read.get_tensor("a.weight")
  assert tensor.dtype == stored.dtype
  np.testing.assert_array_equal(tensor, stored)


def test_views_share_a_storage(tmp_path, torch):
  found = collections.OrderedDict(
    transposed=_tensor(torch, "7", "float32", (4, 3), (1, 4)),
    row=_tensor(torch, "7", "float32", (4,), (1,), offset=8),
    scalar=_tensor(torch, "7", "float32", (), (), offset=5),
    empty=_tensor(torch, "7", "float32", (0, 3), (3, 1), offset=12),
  )
  found._metadata = {"": {"version": 1}}  # As a module's state has it.
  with torch_file.TorchFile(_write(tmp_path / "x", found, {"7": X})) as read:
    np.testing.assert_array_equal(read.get_tensor("transposed"), X.T)
    np.testing.assert_array_equal(read.get_tensor("row"), X[2])
    assert read.get_tensor("scalar") == X[1, 1]
    assert read.get_tensor("empty").shape == (0, 3)


def test_parameter(tmp_path, torch):
  inner = _tensor(torch, "0", "float32", (3, 4), (4, 1))
  args = (inner, True, collections.OrderedDict())
  found = {"a": _Rebuilt(torch._utils._rebuild_parameter, args)}
  with torch_file.TorchFile(_write(tmp_path / "x", found, {"0": X})) as read:
    np.testing.assert_array_equal(read.get_tensor("a"), X)


@pytest.mark.parametrize(
  ("shape", "strides", "offset"),
  [((3, 5), (5, 1), 0), ((4,), (1,), 9), ((3,), (-1,), 4), ((1,), (1,), -1)],
)
def test_views_beyond_the_storage(tmp_path, torch, shape, strides, offset):
  found = {"a": _tensor(torch, "0", "float32", shape, strides, offset)}
  file = _write(tmp_path / "x.bin", found, {"0": X})
  with (
    torch_file.TorchFile(file) as read,
    pytest.raises(ValueError, match=r"x\.bin: tensor 'a' is cut off"),
  ):
    read.get_tensor("a")


def test_missing_storage(tmp_path, torch):
  found = {"a": _tensor(torch, "0", "float32", (1,), (1,))}
  with (
    torch_file.TorchFile(_write(tmp_path / "x.bin", found, {})) as read,
    pytest.raises(ValueError, match=r"x\.bin: tensor 'a': .*data/0"),
  ):
    read.get_tensor("a")


def test_runs_nothing(tmp_path):
  mark = tmp_path / "mark"
  found = {"a": _Rebuilt(os.mkdir, (str(mark),))}
  file = _write(tmp_path / "x.bin", found, {})
  with pytest.raises(ValueError, match=r"x\.bin: .* it asks for posix\.mkdir"):
    torch_file.TorchFile(file)
  assert not mark.exists()


@pytest.mark.parametrize(
  ("found", "message"),
  [({"a": 3}, "other objects"), ([1], "other objects"), ("a", "other objects")],
)
def test_other_objects(tmp_path, found, message):
  with pytest.raises(ValueError, match=rf"x\.bin: no dict .*{message}"):
    torch_file.TorchFile(_write(tmp_path / "x.bin", found, {}))


def test_no_archive(tmp_path):
  file = tmp_path / "x.bin"
  file.write_bytes(pickle.dumps({"a": 1}))
  with pytest.raises(ValueError, match=r"x\.bin: broken, or .* torch 1\.5"):
    torch_file.TorchFile(file)


def test_archive_of_something_else(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
    archive.writestr("a.txt", "b")
  with pytest.raises(ValueError, match=r"x\.bin: .*0 files data\.pkl"):
    torch_file.TorchFile(tmp_path / "x.bin")


def test_agrees_with_torch(tmp_path):
  """Needs torch, which the project does without."""
  torch = pytest.importorskip("torch")
  file = tmp_path / "x.bin"
  x = torch.arange(24.0).reshape(2, 3, 4)
  state = {
    "a": x.transpose(0, 2),
    "b": torch.nn.Parameter(x[1]),
    "c": x.to(torch.bfloat16),
    "d": torch.tensor(3),
  }
  torch.save(state, file)
  with torch_file.TorchFile(file) as read:
    for key, tensor in state.items():
      found = read.get_tensor(key).astype(np.float32)
      np.testing.assert_array_equal(found, tensor.detach().float().numpy())
