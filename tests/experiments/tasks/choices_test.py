import jax
import numpy as np
import pytest

from quantlab.data import choices as questions
from quantlab.experiments import configs, evaluate, ptq
from quantlab.experiments.tasks import choices, perplexity
from quantlab.models import causal_checkpoint
from quantlab.transforms import plan
from tests import tiny_causal, tiny_tasks


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


@pytest.fixture(name="sections", scope="module")
def _sections(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  model = tiny_causal.write(folder / "model", tiny_causal.CONFIGS["llama3"])
  file = tiny_tasks.write_questions(folder / "arc.parquet")
  data = choices.Data(str(file), limit=4, batch_size=3)
  return perplexity.Model(str(model)), data


@pytest.fixture(name="task")
def _task(sections):
  return choices.load(*sections, None, None)


def _surprise(model, params, encode, prompt, option):
  """Nats of an option behind its prompt, token by token."""
  ids, mask = encode([f"{prompt} {option}"])
  start, stop = encode([prompt])[1].sum(), mask.sum()
  chances = jax.nn.log_softmax(model.apply({"params": params}, ids)[0])
  return -sum(float(chances[i - 1, ids[0, i]]) for i in range(start, stop))


def test_choices_by_hand(sections, task):
  model, data = sections
  encode = causal_checkpoint.load(model.path).encode
  asked = data.questions()
  expected = []
  for prompt, options in zip(asked.prompts, asked.options, strict=True):
    each = [
      _surprise(task.model, task.params, encode, prompt, o) / len(o)
      for o in options
    ]
    expected.append(int(np.argmin(each)))
  found = evaluate.outputs(task)(task.params)
  right = np.array(expected) == np.array(asked.answers)
  assert task.compare(found, found) == {
    "accuracy": right.mean(),
    "agreement": 1,
  }
  # Another order of surprises is another choice.
  other = task.compare(-found, found)
  assert other["agreement"] < 1


def test_perfect_and_wrong_answers():
  asked = questions.Questions(
    ["a", "b"], [("x", "yy"), ("x", "yy")], [0, 1], "", ""
  )
  own = np.ones((4, 1), bool)
  right = np.array([[0.0], [1.0], [1.0], [0.0]])
  found = choices.compare(asked, own, right, 1 - right)
  assert found == {"accuracy": 1, "agreement": 0}
  # What is not of an answer does not count.
  stems = np.hstack([right, [[99.0], [0.0], [0.0], [99.0]]])
  own = np.hstack([own, ~own])
  assert choices.compare(asked, own, stems, stems)["accuracy"] == 1


def test_outline_is_what_is_loaded(sections, task):
  outline = choices.outline(*sections)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), task.params)
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), outline.params)
  assert outline.model == task.model
  assert [x.shape for x in outline.args] == [(3, 32)]


def test_spare_questions_are_not_evaluated(sections, task):
  model, data = sections
  [batch] = task.spare(1)
  assert len(batch.args[0]) == 3
  encode = causal_checkpoint.load(model.path).encode
  asked, every = data.questions(), data.questions(limit=None)
  right = {
    encode([f"{prompt} {options[answer]}"])[0].tobytes()
    for prompt, options, answer in zip(
      every.prompts, every.options, every.answers, strict=True
    )
    if prompt not in asked.prompts
  }
  assert {row.tobytes() for row in batch.args[0]} <= right
  message = (
    "2 batches for calibration take 6, but beside what is evaluated .*arc"
    r"\.parquet, train has 4; lower config\.data\.limit, or name another"
  )
  with pytest.raises(ValueError, match=message):
    task.spare(2)


def test_calibration_source(sections, tmp_path):
  model, data = sections
  file = tiny_tasks.write_questions(tmp_path / "other.parquet")
  data = choices.Data(data.source, limit=6, calibration=str(file), batch_size=2)
  task = choices.load(model, data, None, None)
  assert len(task.spare(1)) == 1
  with pytest.raises(ValueError, match=r"other\.parquet, train has 2; lower"):
    task.spare(2)


def test_loss_is_the_mean_surprise_at_real_tokens(task):
  [batch] = task.spare(1)
  (ids,) = batch.args
  logits = jax.jit(task.model.apply)({"params": task.params}, ids)
  chances = np.asarray(jax.nn.log_softmax(logits))
  each = [
    -chances[row, i, ids[row, i + 1]]
    for row, i in zip(*np.nonzero(batch.labels), strict=True)
  ]
  assert 0 < len(each) < batch.labels.size  # the rest is filler
  found = jax.jit(task.loss)(task.params, batch)
  assert found == pytest.approx(np.mean(each), rel=1e-4)
  gradients = plan.leaves(jax.jit(jax.grad(task.loss))(task.params, batch))
  assert all(np.abs(leaf).max() > 0 for leaf in gradients.values())


def _config(sections, **data):
  model, whole = sections
  return {
    "task": "choices",
    "evaluate": "decoded",
    "model": {"path": model.path},
    "data": {"source": whole.source, **data},
    "rules": [["embeddings|norm|bias|head", "keep"], ["kernel$", "weights"]],
    "methods": {"split": {"method": "splitquant", "inner": "rtn"}},
    "weights": {"method": None, "bits": 8},
    "sweep": {"split": {}},
  }


def test_job(sections, tmp_path):
  data = {"letters": True, "options": 4}
  found = ptq.run(_config(sections, **data), tmp_path / "run")
  assert list(found) == ["float", "split-8bit"]
  for row in found.values():
    assert row["accuracy"] in (0, 0.25, 0.5, 0.75, 1)  # of four questions
  assert found["split-8bit"]["agreement"] >= 0.5


WRONG = {
  "options": ({"options": 7}, "arc.parquet, train: no questions$"),
  "batch size": ({"batch_size": 0}, "^batch_size=0 must be at least 1$"),
  "letters": (
    {"letters": "yes"},
    r"^config\.data\.letters: expected True or False, got 'yes'$",
  ),
  "split": ({"split": "test"}, "arc.parquet: not read: .*test"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_error(sections, tmp_path, case):
  changes, message = WRONG[case]
  with pytest.raises(configs.InputError, match=message) as error:
    ptq.run(_config(sections, **changes), tmp_path / "run")
  assert "\n" not in str(error.value)
