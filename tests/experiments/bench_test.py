import pytest

from quantlab.experiments import bench


def test_runs_what_is_asked_for(capsys):
  results = bench.run(128, rounds=2, only=["rtn", "pack 3"])
  assert list(results["cases"]) == [
    "rtn 4-bit, blocks of 128",
    "rtn 2-bit",
    "pack 3-bit",
  ]
  for case in results["cases"].values():
    assert case["seconds"] > 0
    assert case["weights_per_second"] == pytest.approx(
      128 * 128 / case["seconds"]
    )
  bench.show(results)
  assert "pack 3-bit" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"size": 100}, "size=100 must be a multiple of 128"),
    ({"size": 128, "rounds": 0}, "rounds=0"),
    ({"size": 128, "only": ["nope"]}, r"only=\['nope'\] matches none of"),
  ],
)
def test_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    bench.run(**arguments)
