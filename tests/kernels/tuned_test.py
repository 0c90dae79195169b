import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from quantlab.core import base, grids, qtensor, stored
from quantlab.kernels import triton, tuned

KEY = tuned.Key(bits=(4,), group=0, terms=0, m=16, k=4096, n=4096)
WAY = {"rows": 64, "warps": 4, "stages": 2}


def _entry(k=4096, n=4096, *, m=16, **fields):
  form = {"bits": [4], "group": 0, "terms": 0}
  costs = {"by": "seconds", "cost": 1.0, "rule": 2.0}
  return form | WAY | costs | {"k": k, "n": n, "m": m} | fields


def _text(*entries, device="NVIDIA H200"):
  return json.dumps({"device": device, "entries": list(entries)})


@pytest.fixture(name="folder")
def _folder(monkeypatch, tmp_path):
  monkeypatch.setattr(tuned, "FOLDER", tmp_path)
  tuned._table.cache_clear()
  yield tmp_path
  tuned._table.cache_clear()


@pytest.fixture(name="table")
def _table(folder):
  def write(*entries):
    (folder / "nvidia_h200.json").write_text(_text(*entries))

  return write


def test_the_same_shape_counts_and_brings_its_splits(table):
  table(_entry(8192, 2048, rows=128), _entry(splits=8))
  # As many weights as the first, which is another shape.
  assert tuned.lookup("NVIDIA H200", KEY) == WAY | {"splits": 8}


def test_else_the_nearest_number_of_weights(table):
  table(_entry(1024, 1024, rows=128, splits=2), _entry(4096, 8192, splits=8))
  # Two times as many are nearer than a quarter, in spite of the difference.
  near = KEY._replace(k=2048, n=2048)
  assert tuned.lookup("NVIDIA H200", near._replace(n=8192)) == WAY
  assert tuned.lookup("NVIDIA H200", near._replace(n=512))["rows"] == 128


@pytest.mark.parametrize(
  "other",
  [
    {"m": 32},
    {"bits": (4, 1)},
    {"group": 128},
    {"terms": 1},
    {"k": 4096 + 128},  # blocks of 128 codes
    {"n": 4096 + 64},  # a tile that is not whole
  ],
)
def test_another_form_has_no_entry(table, other):
  table(_entry())
  assert tuned.lookup("NVIDIA H200", KEY._replace(**other)) is None


def test_kinds_of_devices(table):
  table(_entry())
  assert tuned.lookup("NVIDIA H100 80GB HBM3", KEY) == WAY
  assert tuned.lookup("NVIDIA A100-SXM4-40GB", KEY) is None
  assert tuned.file_name("NVIDIA A100-SXM4-40GB") == "nvidia_a100_sxm4_40gb"
  assert tuned.device_kind() == jax.devices()[0].device_kind
  device = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert tuned.device_kind() == "NVIDIA H200"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "JSONDecodeError"),
    ("[]", "TypeError"),
    ("{}", "'device'"),
    (_text(_entry(speed=1)), "unexpected keyword argument 'speed'"),
    (_text({"bits": [4]}), "missing 1[0-9] required"),
    (_text(device="NVIDIA H100"), "another kind: device='NVIDIA H100'"),
  ],
)
def test_a_bad_file_is_named(folder, text, message):
  (folder / "nvidia_h200.json").write_text(text)
  with pytest.raises(ValueError, match=rf"^nvidia_h200\.json .*{message}"):
    tuned.lookup("NVIDIA H200", KEY)


def test_shipped_tables_hold_what_a_kernel_takes():
  for file in tuned.FOLDER.iterdir():
    entries = tuned.parse(file.read_text(), file.name)
    assert len({entry.key for entry in entries}) == len(entries)
    for entry in entries:
      triton.Config(entry.rows, entry.splits or 1, entry.warps, entry.stages)
      assert entry.m == tuned.padded(entry.m) <= triton.MOST_ROWS
      assert entry.cost <= 1.03 * entry.rule


def _plans(monkeypatch, rows, groups=1):
  """What `matmul` would run: nothing is compiled."""
  monkeypatch.setattr(triton, "_matmul", lambda plan, x, w: plan)
  words = jax.ShapeDtypeStruct((4096 * 4 // 32, 4096), jnp.uint32)
  codes = stored.Packed(words, 4, 0, (-2,), (4096,))
  table = jax.ShapeDtypeStruct((groups, 4096), jnp.float32)
  grid = grids.Affine(table, table, base.IntSpec(4))
  w = qtensor.QTensor(codes, grid, jnp.float32)
  x = jax.ShapeDtypeStruct((rows, 4096), jnp.bfloat16)
  return triton.matmul(x, w), triton.matmul(x, w, config=triton.Config())


def _divided(plan):
  return triton.Config(plan.rows, plan.splits, plan.warps, plan.stages)


def test_a_kernel_divides_its_work_as_tuned(monkeypatch):
  asked = []
  monkeypatch.setattr(
    tuned, "lookup", lambda *question: asked.append(question) or WAY
  )
  plan, given = _plans(monkeypatch, rows=17, groups=32)
  # What is given is not asked for.
  assert asked == [("cpu", tuned.Key((4,), 128, 0, 32, 4096, 4096))]
  assert _divided(given) == triton.Config()
  # Splits are the rule's, for these tiles.
  assert triton.splits(64, 4096, 4096) != triton.splits(128, 4096, 4096)
  expected = triton.Config(**WAY, splits=triton.splits(64, 4096, 4096))
  assert _divided(plan) == expected
  monkeypatch.setattr(tuned, "lookup", lambda *_: WAY | {"splits": 3})
  assert _divided(_plans(monkeypatch, 17)[0]) == dataclasses.replace(
    expected, splits=3
  )


def test_without_a_table_a_rule_decides(monkeypatch, folder):
  plan, _ = _plans(monkeypatch, rows=17)
  assert _divided(plan) == triton.choose(17, 4096, 4096)
