import json

from absl import app, flags
import pytest

from quantlab.experiments.bench import tune


def test_a_suite_and_its_file(launcher, monkeypatch, tmp_path):
  bench = launcher("bench")
  table = {"device": "NVIDIA H200", "entries": []}
  monkeypatch.setattr(tune, "run", lambda **options: table | options)
  out = tmp_path / "nvidia_h200.json"
  flags.FLAGS.unparse_flags()
  flags.FLAGS(["bench", f"--out={out}", "--only=4-bit", "--rounds=3"])
  bench.main(["bench", "tune"])
  assert json.loads(out.read_text()) == table | {"rounds": 3, "only": ["4-bit"]}


@pytest.mark.parametrize(
  ("rest", "flag", "message"),
  [
    (["kernels"], "--shapes=100x8", "a shape is KxN, K a multiple of 128"),
    (["kernels"], "--rows=1,x", "expected numbers with ',' between, got '1,x'"),
    (["steps"], "--network=vgg", "network='vgg' is none of"),
    ([], "--size=100", "size=100 must be a multiple of 128"),
  ],
)
def test_bad_flags_are_one_line(launcher, rest, flag, message):
  bench = launcher("bench")
  flags.FLAGS.unparse_flags()
  flags.FLAGS(["bench", flag])
  with pytest.raises(SystemExit) as stop:
    bench.main(["bench", *rest])
  assert message in stop.value.code


def test_no_such_suite(launcher):
  with pytest.raises(app.UsageError, match="none of quantizers, steps"):
    launcher("bench").main(["bench", "nope"])
