import jax
import numpy as np
import pytest

import quantlab as ql
from quantlab.experiments import calibration, configs, workdir
from quantlab.experiments.tasks import retrieval
from tests import tiny_bert

RULES = [["mlp/up/in$", {"method": "rtn", "bits": 8}], ["", "keep"]]


def _track(items, text):
  return items


@pytest.fixture(name="sections", scope="module")
def _sections(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  file = tiny_bert.write_pairs(folder / "pairs.csv")
  model = retrieval.Model(str(tiny_bert.write(folder / "model")))
  return model, retrieval.Data(str(file), limit=2, batch_size=2)


@pytest.fixture(name="task", scope="module")
def _task(sections):
  return retrieval.load(*sections, None, None)


def _acts(*rules, batches=1):
  return calibration.Acts(ql.by_path(rules), 8, batches, "c")


def test_section_is_read():
  config = {"acts": {"int8": {"rules": RULES, "batches": 3}}}
  found = calibration.acts(config)["int8"]
  assert found[1:] == (8, 3, "config.acts.int8")
  placed = found.plan.assign({"layer_0/mlp/up/in": 0, "in": 0})
  assert placed["in"] is ql.keep()
  assert placed["layer_0/mlp/up/in"] is not ql.keep()
  assert calibration.acts({}) == {}


WRONG = {
  "no section": (3, r"^config\.acts\.a: expected a section of .*got 3$"),
  "entry": (
    {"rulez": []},
    r"^config\.acts\.a\.rulez: .*; did you mean 'rules'\? Known: rules, batc",
  ),
  "no rules": (
    {"batches": 1},
    r"^config\.acts\.a\.rules: expected pairs .* got None$",
  ),
  "quantizer": (
    {"rules": [["in", "weights"]], "batches": 1},
    r"^config\.acts\.a\.rules\[0\]\[1\]: unknown quantizer 'weights'",
  ),
  "no batches": (
    {"rules": RULES},
    r"^config\.acts\.a\.batches: calibration takes at least 1 .* got None$",
  ),
  "zero batches": (
    {"rules": RULES, "batches": 0},
    r"^config\.acts\.a\.batches: calibration takes at least 1 .* got 0$",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_section_is_one_clear_error(case):
  entries, message = WRONG[case]
  with pytest.raises(configs.InputError, match=message) as error:
    calibration.acts({"acts": {"a": entries}})
  assert "\n" not in str(error.value)


def test_check_names_what_never_fires(sections):
  outline = retrieval.outline(*sections)
  rtn, keep = ql.rtn(8), ql.keep()
  calibration.check(_acts(("mlp/up/in$", rtn), ("", keep)), outline)
  message = r"^c\.rules: no site matches \['lm_head/in'\]; the sites are \['"
  with pytest.raises(configs.InputError, match=message):
    calibration.check(_acts(("lm_head/in", rtn), ("", keep)), outline)
  with pytest.raises(configs.InputError, match="matches no rule of"):
    calibration.check(_acts(("mlp/up/in$", rtn)), outline)


def test_sensitivity_is_of_the_spare_pairs_and_kept(task, tmp_path):
  folder = workdir.Workdir(tmp_path)
  found = calibration.sensitivity(task, 1, folder, _track)
  [batch] = task.spare(1)
  gradients = jax.jit(jax.grad(task.loss))(task.params, batch)
  for x, g in zip(*map(jax.tree.leaves, (found, gradients)), strict=True):
    np.testing.assert_allclose(x, g**2, rtol=1e-2, atol=1e-10)
  broken = task._replace(spare=lambda count: pytest.fail("computed again"))
  again = calibration.sensitivity(broken, 1, folder, _track)
  jax.tree.map(np.testing.assert_array_equal, found, again)


def test_calibration_is_of_the_spare_pairs_and_kept(task, tmp_path):
  folder = workdir.Workdir(tmp_path)
  static = ql.rtn(8, granularity=ql.per_tensor, observer=ql.extremes())
  acts = _acts(("mlp/up/in$", static), ("", ql.keep()))
  state = calibration.calibrate(task, acts, "int8", folder, _track)
  assert list(state.stats) == ["layer_0/mlp/up/in"]
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(state.stats))
  broken = task._replace(spare=lambda count: pytest.fail("computed again"))
  again = calibration.calibrate(broken, acts, "int8", folder, _track)
  jax.tree.map(np.testing.assert_array_equal, state, again)


def test_too_few_pairs_is_one_line(task, tmp_path):
  folder = workdir.Workdir(tmp_path)
  with pytest.raises(configs.InputError, match="9 batches for calibration"):
    calibration.sensitivity(task, 9, folder, _track)
