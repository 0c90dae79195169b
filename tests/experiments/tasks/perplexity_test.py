import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.data import language
from quantlab.experiments import configs, evaluate, ptq
from quantlab.experiments.tasks import perplexity
from quantlab.models import causal_checkpoint, likelihood
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
  file = tiny_tasks.write_rows(folder / "rows.parquet")
  data = perplexity.Data(str(file), tokens=32, limit=5, batch_size=2)
  return perplexity.Model(str(model)), data


@pytest.fixture(name="task")
def _task(sections):
  return perplexity.load(*sections, None, None)


def test_perplexity_is_of_all_windows(sections, task):
  model, data = sections
  published = causal_checkpoint.load(model.path)
  windows = language.windows(
    published.encode, data.text().text, tokens=32, limit=5
  )
  assert len(task.batches) == 3  # the last one half filler
  found = evaluate.outputs(task)(task.params)
  for window, nats in zip(windows, found, strict=True):
    logits = task.model.apply({"params": task.params}, window[None])
    expected = likelihood.nats(logits, window[None])[0]
    np.testing.assert_allclose(nats, expected, atol=1e-4)
  scores = task.compare(found, found)
  assert scores == {
    "perplexity": pytest.approx(np.exp(found.mean())),
    "above": 0,
  }
  assert task.source.endswith("train, 5 windows of 32 tokens")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_outline_is_what_is_loaded(sections, dtype):
  model = perplexity.Model(sections[0].path, jnp.dtype(dtype))
  task = perplexity.load(model, sections[1], None, None)
  outline = perplexity.outline(model, sections[1])
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), task.params)
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), outline.params)
  assert {x.dtype for x in jax.tree.leaves(task.params)} == {jnp.dtype(dtype)}
  assert outline.model == task.model
  assert [x.shape for x in outline.args] == [(2, 32)]


def _rows(batches):
  return {row.tobytes() for batch in batches for row in batch.args[0]}


def test_spare_windows_are_not_evaluated(task):
  batches = task.spare(3)
  assert len(_rows(batches)) == 6
  assert not _rows(batches) & _rows(task.batches)
  message = (
    r"99 batches for calibration take 198, but beside what is evaluated .*rows"
    r"\.parquet, train has \d+; lower config\.data\.limit, or name another"
  )
  with pytest.raises(ValueError, match=message):
    task.spare(99)


def test_calibration_source(sections, tmp_path):
  model, data = sections
  file = tiny_tasks.write_rows(tmp_path / "other.parquet", words=400)
  data = perplexity.Data(data.source, tokens=32, calibration=str(file))
  task = perplexity.load(model, data, None, None)
  # It starts with the same rows, which are evaluated.
  assert not _rows(task.spare(20)) & _rows(task.batches)


def test_loss_is_the_mean_surprise(task):
  [batch] = task.spare(1)
  logits = jax.jit(task.model.apply)({"params": task.params}, *batch.args)
  expected = float(likelihood.nats(logits, *batch.args).mean())
  assert jax.jit(task.loss)(task.params, batch) == pytest.approx(
    expected, rel=1e-5
  )
  gradients = plan.leaves(jax.jit(jax.grad(task.loss))(task.params, batch))
  assert all(np.abs(leaf).max() > 0 for leaf in gradients.values())


def _config(sections, **data):
  model, whole = sections
  return {
    "task": "perplexity",
    "evaluate": "decoded",
    "model": {"path": model.path, "dtype": "bfloat16"},
    "data": {"source": whole.source, "tokens": 32, "limit": 2, **data},
    "sensitivity": {"batches": 2},
    "rules": [
      ["embeddings|norm|bias|head|attention", "keep"],
      ["kernel$", "weights"],
    ],
    "methods": {"sk": {"method": "lloyd", "sensitivity": True}},
    "weights": {"method": None, "bits": None},
    "sweep": {"sk": {"bits": [2, 4]}},
  }


def test_job(sections, tmp_path, capsys):
  found = ptq.run(_config(sections), tmp_path / "run")
  assert list(found) == ["float", "sk-2bit", "sk-4bit"]
  float_, low, high = found.values()
  for row in (low, high):
    ratio = row["perplexity"] / float_["perplexity"]
    assert row["above"] == pytest.approx(ratio - 1)
  assert abs(high["above"]) < abs(low["above"])
  assert "perplexity" in capsys.readouterr().out
  assert (tmp_path / "run" / "sensitivity").exists()


WRONG = {
  "a text that fills no window": (
    {"tokens": 4096},
    r"^tokens=4096, but the text has \d+$",
  ),
  "window": ({"tokens": 1}, "^tokens=1 must be at least 2$"),
  "limit": ({"limit": 0}, "^limit=0 must be at least 1$"),
  "batch size": ({"batch_size": 0}, "^batch_size=0 must be at least 1$"),
  "column": ({"text_column": "page"}, r"no column 'page' among \{'text'"),
  "nothing left": (
    {"limit": None},
    "2 batches for calibration take 2, but beside what is evaluated .* has 0",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_error(sections, tmp_path, case):
  changes, message = WRONG[case]
  with pytest.raises(configs.InputError, match=message) as error:
    ptq.run(_config(sections, **changes), tmp_path / "run")
  assert "\n" not in str(error.value)


def test_dtype_that_is_none(sections):
  config = _config(sections)
  config["model"]["dtype"] = "float12"
  with pytest.raises(
    configs.InputError, match=r"^config\.model\.dtype: 'float"
  ):
    ptq.read(config)
