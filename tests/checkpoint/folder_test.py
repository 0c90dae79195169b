import collections
import errno
import functools
import hashlib
import json
import os
import pathlib
import resource
import shutil
import tempfile

from flax import core as flax_core
from flax import linen as nn
from flax import nnx
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import quantlab as ql
from quantlab import checkpoint
from quantlab.checkpoint import folder as files
from quantlab.checkpoint import structure
from quantlab.core import base, grids, sparse
from quantlab.transforms import estimate, observe

QUANTIZERS = {
  "rtn": ql.rtn(3),
  "symmetric": ql.rtn(4, symmetric=True),
  "lloyd": ql.lloyd(2),
  "icquant": ql.icquant(ql.rtn(2)),
  "easyquant": ql.easyquant(4),
  "stacked": ql.stacked(ql.rtn(4)),
  "labelled": ql.icquant(ql.clusterquant(ql.rtn(2))),
  "window": ql.cfws(),
}


def weights(dtype="float32", shape=(3, 64, 24)):
  x = np.random.default_rng(0).standard_t(3, shape)
  return jnp.asarray(x, dtype)


@functools.cache
def quantized(name, dtype="float32"):
  return ql.quantize(QUANTIZERS[name], weights(dtype))


@functools.cache
def params():
  """One quantized and some kept leaves; every kind of file a checkpoint has."""
  return {
    "dense": {
      "kernel": quantized("rtn", "bfloat16"),
      "bias": weights("float16", (24,)),
    },
    "step": jnp.int32(7),
  }


TREES = {
  "observed": lambda: ql.tracked(
    ql.histogram(bins=4), ql.INT8, ql.per_tensor
  ).init(jnp.ones((2, 3))),
  "nested": lambda: [{"b": (2.5, None), "": [], "a": {}}, {3: "text"}],
  "nothing": lambda: None,
  "leaf": lambda: jnp.arange(3.0),
  "scalars": lambda: [
    0.1,
    -0.0,
    float("inf"),
    float("nan"),
    2**70,
    -1,
    "\ud800",
  ],
  "no_elements": lambda: [
    jnp.zeros((0, 3), jnp.bfloat16),
    np.zeros(0, np.int8),
  ],
  "no_axes": lambda: [jnp.float32(-0.0), np.array(5, np.uint16), np.float16(2)],
  "views": lambda: [np.arange(6.0).reshape(2, 3).T, np.arange(8)[::2]],
  "tied": lambda: [x := jnp.ones(3), x],
  "names": lambda: {
    "../../é/\0": jnp.ones(2),
    "x" * 400: jnp.ones(3),
    ".": np.ones(1),
  },
  "state": lambda: base.State({"a/b": base.Range(jnp.ones(2), jnp.ones(2))}),
  "gated": lambda: ql.cgmq().init(jnp.ones((4, 2))),
  "bounded": lambda: ql.quantize(ql.rquant(4), weights()),
  "learned": lambda: ql.lsq_plus(4).init(jnp.linspace(-1, 3, 40)[:, None]),
  "periodic": lambda: observe.periodic(estimate.minmax).init(2, jnp.float32),
  "deviations": lambda: observe.deviations().init(2, jnp.float32),
  "frozen": lambda: flax_core.freeze({"a": {"b": params()}}),
  "boxed": lambda: [
    nn.Partitioned(params(), ("model", None)),
    nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", None)),
  ],
  "parts": lambda: [
    sparse.Marks(jnp.array([[1, 5]]), (-1,), (8,)),
    grids.Raw(jnp.ones((), bool), tails=True),
    base.IntSpec(5, signed=False, symmetric=True, narrow=False),
  ],
  "nnx": lambda: [
    nnx.state(nnx.BatchNorm(4, rngs=nnx.Rngs(0))),
    nnx.State({"layers": {0: nnx.Param(params(), tag="x"), 1: jnp.ones(2)}}),
    *(cls(jnp.ones(2)) for cls in (nnx.Variable, nnx.Cache, nnx.Intermediate)),
  ],
}


def bits(x):
  if isinstance(x, jax.Array | np.ndarray | np.generic):
    return x.dtype, x.shape, np.asarray(x).tobytes()
  return x.hex() if isinstance(x, float) else x


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert isinstance(y, jax.Array) == isinstance(x, jax.Array)
    assert type(x) is type(y) or isinstance(x, jax.Array)
    assert bits(x) == bits(y)


def roundtrip(folder, tree):
  checkpoint.save(folder, tree)
  return checkpoint.restore(folder)


def data_files(folder):
  """What holds the arrays: all of `arrays/<name>/` but zarr's `.zarray`."""
  files = (pathlib.Path(folder) / "arrays").glob("*/*")
  return [file for file in files if file.name != ".zarray"]


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    *((name, "float32") for name in QUANTIZERS),
    ("rtn", "bfloat16"),
    pytest.param("icquant", "bfloat16", marks=pytest.mark.study),
    pytest.param("easyquant", "float16", marks=pytest.mark.study),
  ],
)
def test_quantized_leaf_is_bit_exact(tmp_path, name, dtype):
  q = quantized(name, dtype)
  found = roundtrip(tmp_path / "q", q)
  assert_same(q, found)
  assert_same(q.dequantize(), found.dequantize())
  files = data_files(tmp_path / "q")
  assert sum(f.stat().st_size for f in files) * 8 == ql.nbits(q)
  assert len(files) == len(jax.tree.leaves(q))


@pytest.mark.parametrize("name", TREES)
def test_tree_is_the_same(tmp_path, name):
  tree = TREES[name]()
  assert_same(tree, roundtrip(tmp_path / "tree", tree))


def test_order_of_keys_is_kept(tmp_path):
  tree = {"b": 1, "a": {"d": 2, "c": 3}}
  assert str(roundtrip(tmp_path / "tree", tree)) == str(tree)


@pytest.mark.parametrize(
  "dtype",
  [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("int64", "uint64", "float64", "complex64", "complex128"),
    *("float16", "bfloat16", "float32", "int2", "int4", "uint2", "uint4"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e8m0fnu"),
    *("float4_e2m1fn", "float6_e2m3fn"),
  ],
)
def test_every_bit_pattern_of_a_type(tmp_path, dtype):
  dtype = jnp.dtype(dtype)
  if dtype.itemsize == 1:  # some of these use only their low bits
    x = np.arange(16).astype(dtype)
  else:
    data = np.random.default_rng(0).bytes(64 * dtype.itemsize)
    x = np.frombuffer(data, dtype)
  tree = [x, x.reshape(4, -1), x[0]]
  if (
    jax.dtypes.canonicalize_dtype(dtype) == dtype
    and "float6_" not in dtype.name
  ):
    tree += [jnp.asarray(x)]  # XLA knows float6 by name only
  assert_same(tree, roundtrip(tmp_path / "x", tree))
  size = sum(f.stat().st_size for f in data_files(tmp_path / "x"))
  assert size == sum(a.nbytes for a in tree)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_special_values_keep_their_bits(tmp_path, dtype):
  bits_ = {
    "float32": [0x80000000, 0x7FC12345, 0xFF800001, 0x00000001],
    "float16": [0x8000, 0x7E55, 0xFC01, 0x0001],
    "bfloat16": [0x8000, 0x7FC5, 0xFF81, 0x0001],
  }[dtype]
  x = jnp.array(bits_, "uint32" if dtype == "float32" else "uint16").view(dtype)
  assert_same({"x": x}, roundtrip(tmp_path / "x", {"x": x}))


_ARRAYS = st_np.arrays(
  st.sampled_from(
    ["float32", "int8", "uint32", "bool", ml_dtypes.bfloat16]
  ).map(np.dtype),
  st_np.array_shapes(min_dims=0, min_side=0, max_side=3),
  elements=st.sampled_from([0, 1]),
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@hypothesis.given(
  st.recursive(
    _SCALARS | _ARRAYS | _ARRAYS.map(jnp.asarray),
    lambda inner: (
      st.dictionaries(st.text(max_size=5), inner, max_size=3)
      | st.lists(inner, max_size=3)
      | st.lists(inner, max_size=3).map(tuple)
      | st.builds(base.State, inner, inner)
    ),
    max_leaves=8,
  )
)
def test_any_tree(tree):
  with tempfile.TemporaryDirectory() as folder:
    assert_same(tree, roundtrip(f"{folder}/tree", tree))


def test_bytes_on_disk_are_what_nbits_counts(tmp_path):
  kept = {"f32": weights(), "none": None, "empty": jnp.zeros((0, 4))}
  tree = {
    "kept": kept | {"step": np.int64(3), "mask": np.ones((3, 5), bool)},
    "q": [quantized(name) for name in QUANTIZERS],
  }
  checkpoint.save(tmp_path / "tree", tree)
  size = sum(f.stat().st_size for f in data_files(tmp_path / "tree"))
  assert size * 8 == ql.nbits(tree)


def test_orbax_alone_reads_the_arrays(tmp_path):
  from orbax import checkpoint as ocp

  checkpoint.save(tmp_path / "p", {"a": {"b": np.arange(5)}})
  found = ocp.PyTreeCheckpointHandler().restore(tmp_path / "p/arrays")
  np.testing.assert_array_equal(found["0.a.b"], np.arange(5))


def test_same_tree_makes_the_same_files(tmp_path):
  checkpoint.save(tmp_path / "a", params())
  checkpoint.save(tmp_path / "b", params())

  def contents(path):
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path): file.read_bytes() for file in files}

  assert contents(tmp_path / "a") == contents(tmp_path / "b")
  assert len(contents(tmp_path / "a")) == 2 + 2 * len(jax.tree.leaves(params()))


def test_sharded_arrays(tmp_path):
  devices = np.array(jax.devices())
  mesh = jax.sharding.Mesh(devices, ("x",))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  x = jnp.arange(len(devices) * 6).reshape(-1, 3)
  tree = {"x": jax.device_put(x, split), "np": np.ones(2)}
  found = roundtrip(tmp_path / "x", tree)
  assert_same({"x": x, "np": np.ones(2)}, found)
  assert len(found["x"].devices()) == 1
  for sharding in (split, whole, devices[-1]):
    found = checkpoint.restore(tmp_path / "x", sharding=sharding)
    assert_same({"x": x, "np": np.ones(2)}, found)
    assert found["x"].sharding == jax.device_put(x, sharding).sharding


def test_sharding_that_does_not_fit_is_not_the_files_fault(tmp_path):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  checkpoint.save(tmp_path / "x", jnp.ones(()))
  with pytest.raises(ValueError, match=r"rank|dimension") as caught:
    checkpoint.restore(tmp_path / "x", sharding=split)
  assert not isinstance(caught.value, checkpoint.CheckpointError)


def test_double_precision_is_not_rounded_silently(tmp_path):
  with jax.enable_x64(True):
    x = jnp.array([1 / 3], "float64")
    assert_same(x, roundtrip(tmp_path / "x", x))
  with pytest.raises(ValueError, match="float64: set jax_enable_x64"):
    checkpoint.restore(tmp_path / "x")


Point = collections.namedtuple("Point", ["x"])


@pytest.mark.parametrize(
  "leaf",
  [
    object(),
    1j,
    b"bytes",
    Point(1),
    collections.OrderedDict(a=1),
    {1, 2},
    jnp.sum,
    jax.ShapeDtypeStruct((2,), "float32"),
    jax.random.key(0),
    np.array(["text"]),
    np.array([object()]),
    np.zeros(2, ">f4"),
    np.zeros(2, "datetime64[s]"),
    np.zeros(2, np.longdouble),
    np.zeros(2, [("a", "f4")]),
    np.ma.masked_array([1, 2], [True, False]),
  ],
  ids=lambda leaf: type(leaf).__name__,
)
def test_what_cannot_be_stored_is_named(tmp_path, leaf):
  with pytest.raises(TypeError, match=r"^layers/0/x: cannot store"):
    checkpoint.save(tmp_path / "p", {"layers": [{"x": leaf}]})
  assert list(tmp_path.iterdir()) == []


# Overwriting, and what stops a save.


def test_existing_checkpoint_is_kept_unless_told(tmp_path):
  path = tmp_path / "p"
  checkpoint.save(path, 1)
  with pytest.raises(FileExistsError, match=str(path)):
    checkpoint.save(path, 2)
  assert checkpoint.restore(path) == 1
  checkpoint.save(path, 3, overwrite=True)
  assert checkpoint.restore(path) == 3
  assert list(tmp_path.iterdir()) == [path]


def test_only_a_checkpoint_is_overwritten(tmp_path):
  (tmp_path / "thesis").mkdir()
  (tmp_path / "thesis/chapter.tex").touch()
  (tmp_path / "file").touch()
  for name in ("thesis", "file"):
    with pytest.raises(FileExistsError, match="is no checkpoint"):
      checkpoint.save(tmp_path / name, 1, overwrite=True)
  assert (tmp_path / "thesis/chapter.tex").exists()


def test_folders_are_made_and_may_be_there(tmp_path, monkeypatch):
  checkpoint.save(tmp_path / "a/b/c", 1)
  (tmp_path / "empty").mkdir()
  checkpoint.save(tmp_path / "empty", 2)
  monkeypatch.chdir(tmp_path)
  checkpoint.save("relative", 3)
  found = [checkpoint.restore(p) for p in ("a/b/c", "empty", "relative")]
  assert found == [1, 2, 3]


def test_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(NotADirectoryError, match=str(tmp_path / "file/p")):
    checkpoint.save(tmp_path / "file/p", params())


def fail_orbax(monkeypatch):
  class Full:
    def save(self, folder, args):
      (folder / "half").touch()
      raise ValueError("RESOURCE_EXHAUSTED: no space [os_error_code='28']")

  real = files._orbax()[0]
  monkeypatch.setattr(files, "_orbax", lambda: (real, Full()))


def fail_call(name):
  def fail(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  return lambda monkeypatch: monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
  "fault",
  [fail_orbax, fail_call("fsync"), fail_call("rename"), fail_call("mkdir")],
  ids=["orbax", "fsync", "rename", "mkdir"],
)
def test_full_disk_loses_nothing(tmp_path, monkeypatch, fault, overwrite):
  path = tmp_path / "p"
  if overwrite:
    checkpoint.save(path, "old")
  with monkeypatch.context() as patch:
    fault(patch)
    with pytest.raises(OSError, match="cannot save") as caught:
      checkpoint.save(path, params(), overwrite=overwrite)
  assert caught.value.errno == errno.ENOSPC
  assert caught.value.filename == str(path)
  assert list(tmp_path.iterdir()) == [path] * overwrite
  if overwrite:
    assert checkpoint.restore(path) == "old"
  checkpoint.save(path, params(), overwrite=overwrite)
  assert_same(params(), checkpoint.restore(path))


def test_write_that_really_fails(tmp_path, capfd):
  path = tmp_path / "p"
  checkpoint.save(path, "old")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  x = np.zeros(100_000)
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    with pytest.raises(OSError, match=str(path)) as caught:
      checkpoint.save(path, x, overwrite=True)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert caught.value.errno == errno.EFBIG
  assert checkpoint.restore(path) == "old"
  assert list(tmp_path.iterdir()) == [path]
  assert "Traceback" not in capfd.readouterr().err


class Killed(BaseException):
  pass


@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_writer_leaves_old_or_new(tmp_path, monkeypatch, step):
  path = tmp_path / "p"
  checkpoint.save(path, params())
  steps = []

  def dying(function):
    def call(*args, **kwargs):
      steps.append(function)
      if len(steps) >= step:  # a dead process cleans nothing up either
        raise Killed
      return function(*args, **kwargs)

    return call

  with monkeypatch.context() as patch:
    patch.setattr(files, "_tidy", lambda path: None)
    patch.setattr(os, "rename", dying(os.rename))
    patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
    with pytest.raises(Killed):
      checkpoint.save(path, "new", overwrite=True)
  assert len(list(tmp_path.iterdir())) == 2  # there is a leftover
  assert path.exists() == (step != 2)
  expected = "new" if step == 3 else params()
  assert_same(expected, checkpoint.restore(path))
  checkpoint.save(path, "newer", overwrite=True)
  assert checkpoint.restore(path) == "newer"
  assert list(tmp_path.iterdir()) == [path]


def test_leftover_does_not_hide_what_was_saved(tmp_path):
  path = tmp_path / "p"
  checkpoint.save(path, 1)
  os.rename(path, tmp_path / ".p.replaced")  # killed between two renames
  path.mkdir()
  assert checkpoint.restore(path) == 1
  with pytest.raises(FileExistsError):
    checkpoint.save(path, 2)
  assert checkpoint.restore(path) == 1


# What is not a whole checkpoint.


def test_nothing_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=str(tmp_path / "p")):
    checkpoint.restore(tmp_path / "p")


def test_something_else_there(tmp_path):
  (tmp_path / "file").touch()
  for path in (tmp_path, tmp_path / "file"):
    with pytest.raises(
      checkpoint.CheckpointError, match=f"^{path}: is no check"
    ):
      checkpoint.restore(path)
  (tmp_path / "tree.json").write_text('{"model": "bert"}')
  with pytest.raises(
    checkpoint.CheckpointError, match=f"^{tmp_path}/tree.json"
  ):
    checkpoint.restore(tmp_path)


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


DAMAGES = {
  "halve": lambda file: os.truncate(file, file.stat().st_size // 2),
  "clear": lambda file: os.truncate(file, 0),
  "extend": lambda file: file.write_bytes(file.read_bytes() + b"x"),
  "flip": flip,
  "delete": lambda file: file.unlink(),
}
FILES = ["tree.json", "arrays/_METADATA", "arrays/*bias/.zarray"]
FILES += ["arrays/*bias/0", "arrays/*step/0", "arrays/*words/0*"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_named(tmp_path, file, damage, capfd):
  checkpoint.save(tmp_path / "p", params())
  [path] = (tmp_path / "p").glob(file)
  DAMAGES[damage](path)
  with pytest.raises(checkpoint.CheckpointError) as caught:
    checkpoint.restore(tmp_path / "p")
  named = path if path.exists() or path.name != "tree.json" else tmp_path / "p"
  assert str(caught.value).startswith(f"{named}: ")
  assert capfd.readouterr().err == ""


def test_missing_folder_is_named(tmp_path):
  checkpoint.save(tmp_path / "p", params())
  shutil.rmtree(tmp_path / "p/arrays")
  with pytest.raises(checkpoint.CheckpointError, match=r"p/arrays/.*missing"):
    checkpoint.restore(tmp_path / "p")


def edit(path, old, new, sign):
  """Replaces text in tree.json; `sign` makes its checksum fit."""
  file = path / "tree.json"
  text = file.read_text()
  assert old in text
  content = json.loads(text.replace(old, new))
  if sign:
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    content["sha256"] = digest
  file.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ("old", "new", "sign", "message"),
  [
    ('["bits", 3]', '["bits", 4]', False, "tree.json: does not match"),
    ('"version": 1', '"version": 2', False, "'version': 2.*reads.*: 1"),
    ('"version": 1', '"version": 2', True, "'version': 2.*reads.*: 1"),
    ('"QTensor"', '"os.system"', True, "unknown class 'os.system'"),
    ('"QTensor"', '"nnx.Module"', True, "unknown class 'nnx.Module'"),
    ('"QTensor"', '"Sum"', True, "TypeError"),
    ('["bits", 3]', '["bits", 99]', True, "bits must be in 1..16, got 99"),
    ('"bfloat16"', '"bfloat17"', True, "bfloat17"),
    ('"array": 0', '"array": 9', True, "IndexError"),
    ('"files"', '"folders"', True, "KeyError: 'files'"),
  ],
)
def test_edited_tree_is_refused(tmp_path, old, new, sign, message):
  checkpoint.save(tmp_path / "p", params())
  edit(tmp_path / "p", old, new, sign)
  with pytest.raises(checkpoint.CheckpointError, match=message) as caught:
    checkpoint.restore(tmp_path / "p")
  assert str(caught.value).startswith(str(tmp_path / "p"))


def test_every_class_is_tested():
  tested = [tree() for tree in TREES.values()]
  tested += [quantized(name) for name in QUANTIZERS]
  with tempfile.TemporaryDirectory() as folder:
    checkpoint.save(f"{folder}/p", tested)
    text = pathlib.Path(folder, "p/tree.json").read_text()
  names = [*structure._CLASSES, *structure._nnx()]
  assert [name for name in names if f'{{"{name}": [' not in text] == []
