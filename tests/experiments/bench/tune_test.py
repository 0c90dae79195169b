import importlib
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from quantlab.experiments import aot, aot_counts
from quantlab.experiments.bench import timing, tune, ways
from quantlab.kernels import triton, tuned

PRODUCT = ways.Product("4-bit, blocks of 128", 16, (4096, 4096))
RULE = triton.choose(16, 4096, 4096)


def _way(cost, warps=8, loads=100, **config):
  return ways.Way(triton.Config(**config), cost, warps, loads)


@pytest.mark.parametrize(
  ("others", "expected"),
  [
    ([_way(1.0, stages=3)], 3),  # less
    ([_way(1.99, stages=3)], 4),  # as much
    ([_way(1.99, warps=16, stages=3)], 3),  # as much, with more warps
    ([_way(1.0, warps=4, stages=3)], 4),  # fewer warps
    ([_way(1.0, loads=99, stages=3)], 4),  # fewer loads
    ([_way(math.inf, stages=3), _way(1.5, stages=2)], 2),  # does not fit
  ],
)
def test_only_what_is_better_is_taken(others, expected):
  assert tune.best([_way(2.0), *others]).config.stages == expected


def test_something_has_to_fit():
  with pytest.raises(ValueError, match="no way fits: "):
    tune.best([_way(math.inf)])


def test_counts_of_a_processor():
  key = tuned.Key((2, 1), 0, 1, 16, 4096, 4096)
  counts = aot_counts.GpuCounts("k", 900, 256, 121, 0, 50_000)
  config = triton.Config(rows=128, splits=8, warps=4, stages=3)
  # 32 tiles of 8 splits are two for a processor, though four fit.
  way = ways.counted(key, config, counts)
  assert way == ways.Way(config, 1.0, 8, 2 * 2 * 128 * 256 * 3 // 8)
  # 128 registers of 128 threads, four times; shared memory of one.
  few = key._replace(n=2**20)
  assert ways.counted(few, config, counts).warps == 16
  most = counts._replace(shared=aot_counts.SHARED)
  assert ways.counted(few, config, most).warps == 4


def _report(cases):
  """Kernels whose loops are shortest for tiles of 128 rows by 4 warps."""
  found = {}
  for case in cases:
    rows, warps, stages = re.search(r"(\d+)x(\d)x(\d)$", case).groups()
    loop = 64 if (rows, warps) == ("128", "4") else int(rows)
    kernel = aot_counts.GpuCounts(
      "matmul_4bit", 900, loop, 64, 0, 45_000 * int(stages)
    )
    found[case] = [kernel._replace(kernel="sum"), kernel]
  return aot_counts.Report(found, {})


def test_a_table_by_instructions(monkeypatch, capsys):
  monkeypatch.setattr(aot, "missing", lambda: "")
  monkeypatch.setattr(aot, "versions", lambda: {"jax": jax.__version__})

  def compiled(target, module, only):
    cases = importlib.import_module(module).cases(target)
    return _report(c for c in cases if c.startswith(tuple(only)))

  monkeypatch.setattr(aot, "run", compiled)
  table = tune.run(only=["4-bit"])
  entries = tuned.parse(json.dumps(table), "nvidia_h200.json")
  assert len(entries) == 2 * len(tune.ROWS) * len(tune.SHAPES)
  for entry in entries:
    assert (entry.rows, entry.warps, entry.splits) == (128, 4, None)
    assert (entry.by, entry.cost) == ("instructions", 0.25)
    assert entry.rule == (0.25 if entry.m == 16 else 1.0)
  tune.show(table)
  assert "128x4x4" in capsys.readouterr().out


def test_an_entry_by_seconds():
  calls = []

  def measure(product, configs):
    calls.append(configs)
    return [
      ways.Way(c, 100 / c.splits + 90 * (c.stages != 5) + c.rows)
      for c in configs
    ]

  entry = tune.timed(PRODUCT, measure)
  found = tuned.Entry(**entry)
  assert found.key == PRODUCT.key()
  # The best of the first ways, then of its splits: 8 instead of 4.
  assert (found.rows, found.warps, found.stages) == (64, 4, 5)
  assert found.splits == 2 * triton.splits(64, 4096, 4096)
  assert (found.cost, found.rule) == (76.5, 230.5)
  first, second = calls
  assert first[0] == second[0] == RULE
  assert len(first) == 9
  assert {c.splits for c in second[1:]} == {2, 4, 8}


@pytest.fixture(name="decoded")
def _decoded(monkeypatch):
  """Products of decoded weights, which take as many seconds as stages."""

  def matmul(x, w, config):
    if config.stages == 5:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory")
    return jnp.dot(x, w.dequantize(), preferred_element_type=jnp.float32)

  def run(cases, rounds):
    stages = {
      c.name: float(re.search(r"stages=(\d)", c.name)[1]) for c in cases
    }
    return {"cases": {name: {"seconds": s} for name, s in stages.items()}}

  monkeypatch.setattr(triton, "matmul", matmul)
  monkeypatch.setattr(timing, "run", run)
  monkeypatch.setattr(ways.kernels, "COPIES", 1)


def test_ways_are_checked_and_timed(monkeypatch, decoded):
  product = ways.Product("4-bit", 2, (128, 8))
  configs = [triton.Config(stages=stages) for stages in (2, 5)]
  found = ways.by_seconds(product, configs, rounds=1)
  assert found == [
    ways.Way(configs[0], 2.0),
    ways.Way(configs[1], math.inf),
  ]
  monkeypatch.setattr(triton, "matmul", lambda x, w, config: jnp.ones((2, 8)))
  with pytest.raises(ValueError, match=r"wrong by .* with Config\(rows=128"):
    ways.by_seconds(product, configs[:1], rounds=1)


def test_other_errors_are_not_hidden(monkeypatch, decoded):
  def fails(x, w, config):
    raise jax.errors.JaxRuntimeError("INTERNAL: no")

  monkeypatch.setattr(triton, "matmul", fails)
  product = ways.Product("4-bit", 2, (128, 8))
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    ways.by_seconds(product, [RULE], rounds=1)


def test_formats_are_those_that_the_kernel_takes():
  names = tune.formats()
  assert {"8-bit", "ICQuant 3-bit, 5 %", "codebook 4-bit"} < {*names}
  assert {"ICQuant 4-bit, 5 %", "SplitQuant 2-bit, 3 parts"}.isdisjoint(names)


def test_refuses(monkeypatch):
  with pytest.raises(ValueError, match=r"only=\['nope'\] matches none of"):
    tune.run(only=["nope"])
  with pytest.raises(ValueError, match="target='v5e' is not h200"):
    tune.cases("v5e")
  monkeypatch.setattr(aot, "packages", lambda: None)
  with pytest.raises(
    ValueError, match=r"no GPU, .* extra aot are not installed"
  ):
    tune.run(only=["4-bit"])
