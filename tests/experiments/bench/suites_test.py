import pytest

from quantlab.experiments.bench import kernels, quantizers, steps, timing
from quantlab.models import cnn


def test_runs_what_is_asked_for(capsys):
  results = timing.run(quantizers.cases(128), rounds=2, only=["rtn", "pack 3"])
  assert list(results["cases"]) == [
    "rtn 4-bit, blocks of 128",
    "rtn 2-bit",
    "pack 3-bit",
  ]
  first, *_ = results["cases"].values()
  for case in results["cases"].values():
    assert case["seconds"] > 0
    assert case["per_second"] == pytest.approx(128 * 128 / case["seconds"])
    assert case["ratio"] == case["seconds"] / first["seconds"]
  timing.show(results)
  assert "pack 3-bit" in capsys.readouterr().out


def test_every_step_is_a_case(monkeypatch):
  tiny = cnn.NETWORKS["resnet8"].clone(stem=4, blocks=((4, 1),))
  monkeypatch.setattr(cnn, "NETWORKS", {"tiny": tiny})
  few = ("float", "in-hindsight W8A8G8")
  ways = {way: steps._WAYS[way] for way in few}
  monkeypatch.setattr(steps, "_WAYS", ways)
  results = timing.run(steps.cases("tiny", batch=4, size=8), rounds=1)
  names = list(results["cases"])
  assert names == ["tiny, float", "tiny, in-hindsight W8A8G8"]
  with pytest.raises(ValueError, match="network='resnet8' is none of tiny"):
    next(steps.cases("resnet8"))


@pytest.mark.parametrize(
  ("size", "arguments", "message"),
  [
    (100, {}, "size=100 must be a multiple of 128"),
    (128, {"rounds": 0}, "rounds=0"),
    (128, {"only": ["nope"]}, r"only=\['nope'\] matches none of"),
  ],
)
def test_refuses(size, arguments, message):
  with pytest.raises(ValueError, match=message):
    timing.run(quantizers.cases(size), **arguments)


def test_products_are_checked_and_compared(capsys):
  only = ["2-bit", "ICQuant 2", "EasyQuant"]
  results = kernels.run([(256, 32)], [1, 3], rounds=1, only=only)
  assert [each["m"] for each in results["products"]] == [1, 3]
  for each in results["products"]:
    cases = each["cases"]
    assert next(iter(cases)) == "float32 dot"
    assert len(cases) == 5
    for case in cases.values():
      assert case["error"] < 1e-5
      assert case["seconds"] > 0
      assert case["bandwidth"] > 0
    assert cases["2-bit"]["bits"] == pytest.approx(2 + 64 / 256)
    # A bit for the mark, and three grids.
    assert cases["ICQuant 2-bit, 5 %"]["bits"] == pytest.approx(3 + 192 / 256)
  kernels.show(results)
  assert "256 x 32" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("shapes", "rows", "only", "message"),
  [
    ([(100, 8)], [1], [], "multiple of 128 and N at least 1, got 100x8"),
    ([(128, 8)], [0], [], r"nothing to run: .*rows=\[0\]"),
    ([(128, 8)], [1], ["nope"], r"only=\['nope'\] matches none of"),
  ],
)
def test_products_refuse(shapes, rows, only, message):
  with pytest.raises(ValueError, match=message):
    kernels.run(shapes, rows, only=only)
