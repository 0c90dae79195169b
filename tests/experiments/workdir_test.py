import json
import logging

import numpy as np
import pytest

from quantlab.experiments import configs, progress, workdir


def test_begin_compares_with_what_is_recorded(tmp_path, caplog):
  folder = workdir.Workdir(tmp_path / "a" / "b")
  folder.begin({"x": {"y": 1}}, {"jax": "1"})
  folder.begin({"x": {"y": 1}}, {"jax": "1"})
  assert caplog.text == ""
  folder.begin({"x": {"y": 1}}, {"jax": "2"})
  assert "is older: jax: '1' -> '2'" in caplog.text
  with pytest.raises(configs.InputError, match=r"run: x\.y: 1 -> 2; z: not"):
    folder.begin({"x": {"y": 2}, "z": 3}, {"jax": "1"})


def test_inputs_are_compared_with_what_is_recorded(tmp_path):
  folder = workdir.Workdir(tmp_path)
  folder.begin({}, {})
  folder.expect({"data": "a"})
  folder.expect({"data": "a"})
  with pytest.raises(configs.InputError, match=r"run: data: 'a' -> 'b'"):
    folder.expect({"data": "b"})


def test_kept_is_computed_once(tmp_path):
  place = tmp_path / "a" / "b"
  found = [workdir.kept(place, lambda i=i: {"x": i}) for i in range(2)]
  assert found == [{"x": 0}, {"x": 0}]
  file = place / "tree.json"
  file.write_text(file.read_text().replace("0", "1"))
  with pytest.raises(configs.InputError, match=r"delete .*b to compute it"):
    workdir.kept(place, dict)


def test_damaged_record_is_named(tmp_path):
  folder = workdir.Workdir(tmp_path)
  folder.begin({}, {})
  (tmp_path / "run.json").write_text("{")
  with pytest.raises(configs.InputError, match=r"run\.json: is damaged: "):
    folder.begin({}, {})


def test_write_json_is_strict_and_whole(tmp_path):
  file = tmp_path / "a" / "x.json"
  workdir.write_json(file, {"a": [float("nan"), 1.5, float("-inf")]})
  assert json.loads(file.read_text()) == {"a": [None, 1.5, None]}
  with pytest.raises(TypeError):
    workdir.write_json(file, {"a": {1: object()}})
  assert json.loads(file.read_text()) == {"a": [None, 1.5, None]}


def test_fingerprint_sees_everything():
  x = np.arange(6, dtype=np.float32)
  changed = [
    {"a": x + 1},
    {"b": x},
    {"a": x.reshape(2, 3)},
    {"a": x.astype(np.float16)},
    {"a": x[:5]},
    {"a": x, "b": x[:0]},
  ]
  prints = [workdir.fingerprint(leaves) for leaves in [{"a": x}, *changed]]
  assert len(set(prints)) == len(prints)
  assert workdir.fingerprint({"a": x.copy()}) == prints[0]
  assert workdir.fingerprint({"a": np.repeat(x, 2)[::2]}) == prints[0]


@pytest.mark.parametrize("terminal", [False, True])
def test_log_goes_to_file_and_to_a_piped_stderr(
  tmp_path, capsys, monkeypatch, terminal
):
  monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
  log = logging.getLogger("quantlab.experiments.somewhere")
  for text in ("first", "second"):
    with progress.log_to(tmp_path / "log"):
      log.info("%s line", text)
      log.warning("careful")
  log.warning("afterwards")
  lines = (tmp_path / "log").read_text().splitlines()
  assert [line.split(" ", 2)[2] for line in lines] == [
    *("INFO first line", "WARNING careful"),
    *("INFO second line", "WARNING careful"),
  ]
  shown = capsys.readouterr().err
  assert ("first line" in shown) == (not terminal)
  assert shown.count("careful") == 2


def test_log_file_has_the_traceback_of_what_ends_the_job(tmp_path, capsys):
  with pytest.raises(KeyError), progress.log_to(tmp_path / "log"):
    {}["missing"]
  text = (tmp_path / "log").read_text()
  assert "Traceback" in text
  assert "KeyError: 'missing'" in text
  assert capsys.readouterr().err == ""


def test_bars_remove_themselves():
  with progress.bars() as track:
    outer = [list(track([1, 2], "inner")) for _ in track("ab", "outer")]
  assert outer == [[1, 2], [1, 2]]
