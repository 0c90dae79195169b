import pytest

from quantlab.experiments import bench


def test_runs_what_is_asked_for(capsys):
  results = bench.run(bench.quantizers(128), rounds=2, only=["rtn", "pack 3"])
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
  bench.show(results)
  assert "pack 3-bit" in capsys.readouterr().out


def test_every_step_is_a_case(monkeypatch):
  tiny = bench.cnn.NETWORKS["resnet8"].clone(stem=4, blocks=((4, 1),))
  monkeypatch.setattr(bench.cnn, "NETWORKS", {"tiny": tiny})
  few = ("float", "in-hindsight W8A8G8")
  monkeypatch.setattr(bench, "_WAYS", {way: bench._WAYS[way] for way in few})
  results = bench.run(bench.steps("tiny", batch=4, size=8), rounds=1)
  names = list(results["cases"])
  assert names == ["tiny, float", "tiny, in-hindsight W8A8G8"]
  with pytest.raises(ValueError, match="network='resnet8' is none of tiny"):
    next(bench.steps("resnet8"))


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
    bench.run(bench.quantizers(size), **arguments)
