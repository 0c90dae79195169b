import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.experiments import configs, evaluate, ptq
from quantlab.experiments.tasks import classification
from quantlab.models import classifier
from quantlab.transforms import plan
from tests import tiny_tasks


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


@pytest.fixture(name="sections", scope="module")
def _sections(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny")
  file = tiny_tasks.write_texts(folder / "texts.parquet")
  model = tiny_tasks.write_classifier(folder / "model")
  data = classification.Data(str(file), limit=20, batch_size=6)
  return classification.Model(str(model)), data


@pytest.fixture(name="task")
def _task(sections):
  return classification.load(*sections, None, None)


def test_outputs_are_the_logits_of_the_texts_in_order(sections, task):
  model, data = sections
  published, texts = classifier.load(model.path), data.texts()
  found = evaluate.outputs(task)(task.params)
  assert found.shape == (20, 6)
  for text, logits in zip(texts.texts, found, strict=True):
    ids, mask = published.encode([text])
    [expected] = task.model.apply({"params": task.params}, ids, mask)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
  accuracy = np.mean(found.argmax(axis=1) == texts.labels)
  assert task.compare(found, found) == {
    "accuracy": pytest.approx(accuracy),
    "agreement": 1,
    "cosine": pytest.approx(1),
    "logits_sqnr_db": None,
  }
  wrong = task.compare(np.roll(found, 1, axis=1), found)
  assert wrong["agreement"] == 0
  assert wrong["cosine"] < 0.9


def test_outline_is_what_is_loaded(sections, task):
  outline = classification.outline(*sections)
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), task.params)
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), outline.params)
  assert outline.model == task.model
  assert [x.shape for x in outline.args] == [(6, 32)] * 2


def test_classes_by_name_and_by_number(sections, tmp_path):
  import datasets

  model, _ = sections
  texts = {"text": ["the cat", "the dog"], "label": ["joy", "anger"]}
  file = str(tmp_path / "named.parquet")
  datasets.Dataset.from_dict(texts).to_parquet(file)
  task = classification.load(model, classification.Data(file), None, None)
  scores = np.eye(6)[[1, 3]]  # in the model's order, not that of the alphabet
  assert task.compare(scores, scores)["accuracy"] == 1
  task = classification.load(
    classification.Model(
      str(tiny_tasks.write_classifier(tmp_path / "model", ("LABEL_0", "1")))
    ),
    classification.Data(file),
    None,
    None,
  )
  scores = np.eye(2)[[1, 0]]
  assert task.compare(scores, scores)["accuracy"] == 1


def test_spare_texts_are_not_evaluated(sections, task):
  model, data = sections
  texts, encode = data.texts(), classifier.load(model.path).encode
  batches = task.spare(2)
  rows = [tuple(row) for batch in batches for row in batch.args[0].tolist()]
  ids, _ = encode(texts.texts)
  assert len(set(rows)) == 12
  assert not set(rows) & {tuple(row) for row in ids.tolist()}
  every = data.texts(limit=None)
  numbers = dict(
    zip(
      map(tuple, encode(every.texts)[0].tolist()),
      every.labels.tolist(),
      strict=True,
    )
  )
  labels = [label for batch in batches for label in batch.labels.tolist()]
  assert labels == [numbers[row] for row in rows]
  message = (
    "3 batches for calibration take 18, but beside what is evaluated .*texts"
    r"\.parquet, train has 12; lower config\.data\.limit, or name another"
  )
  with pytest.raises(ValueError, match=message):
    task.spare(3)


def test_calibration_source(sections, tmp_path):
  model, data = sections
  other = classification.Data(
    data.source,
    calibration=str(tiny_tasks.write_texts(tmp_path / "other.parquet")),
  )
  task = classification.load(model, other, None, None)
  # The same texts in another file are still those that are evaluated.
  with pytest.raises(ValueError, match=r"other\.parquet, train has 0; lower"):
    task.spare(1)


def test_loss_is_the_cross_entropy_of_labels(task):
  [batch] = task.spare(1)
  logits = jax.jit(task.model.apply)({"params": task.params}, *batch.args)
  chances = jax.nn.softmax(logits)[jnp.arange(6), batch.labels]
  expected = -jnp.mean(jnp.log(chances))
  assert jax.jit(task.loss)(task.params, batch) == pytest.approx(
    float(expected), 1e-5
  )
  gradients = plan.leaves(jax.jit(jax.grad(task.loss))(task.params, batch))
  for path in ("layer_0/mlp/up", "pooler", "classifier"):
    assert np.abs(gradients[f"{path}/kernel"]).max() > 0


def _config(sections, **data):
  model, whole = sections
  return {
    "task": "classification",
    "evaluate": "decoded",
    "model": {"path": model.path},
    "data": {"source": whole.source, "batch_size": 16, **data},
    "rules": [["embeddings|norm|bias", "keep"], ["kernel$", "weights"]],
    "methods": {"split": {"method": "splitquant", "inner": "rtn"}},
    "weights": {"method": None, "bits": None},
    "sweep": {"split": {"bits": [2, 8]}},
  }


def test_job(sections, tmp_path):
  found = ptq.run(_config(sections), tmp_path / "run")
  assert list(found) == ["float", "split-2bit", "split-8bit"]
  assert found["split-8bit"]["agreement"] == 1
  assert found["split-8bit"]["cosine"] > 0.9999
  assert found["split-2bit"]["cosine"] < found["split-8bit"]["cosine"]
  for row in found.values():
    assert 0 <= row["accuracy"] <= 1


WRONG = {
  "too many classes": (
    {"label_column": "row"},
    r"parquet, train has the classes \['0', .*'31'\], the model only \['sadne",
  ),
  "column": ({"text_column": "sms"}, r"no column 'sms' among \{'text'"),
  "batch size": ({"batch_size": 0}, "^batch_size=0 must be at least 1$"),
  "entry": ({"spit": "test"}, r"^config\.data\.spit: .*mean 'split'\?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_error(sections, tmp_path, case):
  import datasets

  changes, message = WRONG[case]
  file = str(tmp_path / "rows.parquet")
  rows = {
    "text": tiny_tasks.TEXTS,
    "label": [0] * len(tiny_tasks.TEXTS),
    "row": list(range(len(tiny_tasks.TEXTS))),
  }
  datasets.Dataset.from_dict(rows).to_parquet(file)
  config = _config(sections, source=file, **changes)
  with pytest.raises(configs.InputError, match=message) as error:
    ptq.run(config, tmp_path / "run")
  assert "\n" not in str(error.value)
