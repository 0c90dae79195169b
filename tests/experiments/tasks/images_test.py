import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.experiments import configs, evaluate, ptq, train
from quantlab.experiments.tasks import images
from quantlab.models import repvgg
from quantlab.transforms import plan

CONFIG = {
  "task": "images",
  "evaluate": "decoded",
  "model": {"path": "repvgg-digits", "steps": 6, "batch_size": 32},
  "data": {"limit": 50, "batch_size": 32},
  "rules": [["stage_0|head|bias", "keep"], ["kernel$", "weights"]],
  "methods": {"rtn": {"method": "rtn"}},
  "weights": {"method": None, "bits": None},
  "sweep": {"rtn": {"bits": [3, 8]}},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  small = repvgg.RepVGGConfig((4, 8), (1, 2), (1, 2), classes=10)
  monkeypatch.setitem(repvgg.CONFIGS, "digits", small)


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory):
  return tmp_path_factory.mktemp("images") / "trained"


@pytest.fixture(name="task")
def _task(place):
  model, data = (CONFIG[name] for name in ("model", "data"))
  return images.load(
    images.Model(**model), images.Data(**data), place, lambda items, text: items
  )


def test_trained_model_is_kept(task, place, monkeypatch):
  assert place.exists()
  monkeypatch.setattr(
    train, "fit", lambda *args, **kwargs: pytest.fail("again")
  )
  again = images.load(images.Model("repvgg-digits"), images.Data(), place, None)
  jax.tree.map(np.testing.assert_array_equal, task.params, again.params)
  assert again.sha256 != task.sha256  # all images, not 50


def test_outputs_are_logits_of_every_image(task):
  found = evaluate.outputs(task)(task.params)
  assert len(task.batches) == 2
  assert found.shape == (50, 10)
  data = images.Data(**CONFIG["data"]).images("test")
  x = jnp.stack([data.read(i) for i in range(50)])
  expected = task.model.apply({"params": task.params}, x)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  accuracy = float(np.mean(found.argmax(axis=1) == data.labels))
  assert task.compare(found, found) == {
    "logits_sqnr_db": None,
    "cosine": pytest.approx(1),
    "agreement": 1,
    "accuracy": pytest.approx(accuracy),
  }


def test_published_model_wants_its_own_images(monkeypatch, tmp_path):
  config = repvgg.RepVGGConfig((4,), (2,), (2,), classes=10)
  model = repvgg.RepVGG(config)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 6, 6, 3)))
  mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
  published = images.repvgg_weights.Checkpoint(
    model, variables, 6, mean, std, tmp_path
  )
  monkeypatch.setattr(images.repvgg_weights, "load", lambda path: published)
  sections = images.Model("x"), images.Data(channels=3, limit=5, batch_size=4)
  task = images.load(*sections, tmp_path / "trained", None)
  assert not (tmp_path / "trained").exists()
  first, last = task.batches
  assert first.args[0].shape == last.args[0].shape == (4, 6, 6, 3)
  assert (last.args[0][1:] == 0).all()  # filler
  # The digits are grey: what normalization adds is all that channels differ in.
  grey = first.args[0] * np.array(std) + np.array(mean)
  np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-5)
  assert 0 <= grey.min() < grey.max() <= 1
  found = evaluate.outputs(task)(task.params)
  expected = model.apply(variables, first.args[0])
  np.testing.assert_allclose(found[:4], expected, atol=1e-4)
  outline = images.outline(*sections)
  assert [x.shape for x in outline.args] == [(4, 6, 6, 3)]
  shapes = jax.tree.map(jnp.shape, task.params)
  assert jax.tree.map(lambda x: x.shape, outline.params) == shapes


def test_outline_is_what_is_loaded(task):
  outline = images.outline(
    images.Model(**CONFIG["model"]), images.Data(**CONFIG["data"])
  )
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), task.params)
  assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), outline.params)
  assert outline.model == task.model
  assert [x.shape for x in outline.args] == [(32, 8, 8, 1)]


def test_spare_images_are_of_the_training(task):
  batches = task.spare(3)
  assert [batch.args[0].shape for batch in batches] == 3 * [(32, 8, 8, 1)]
  everything = {
    x.tobytes() for batch in task.batches for x in batch.args[0] if x.any()
  }
  spare = [x.tobytes() for batch in batches for x in batch.args[0]]
  assert not everything & set(spare)
  assert len(set(spare)) > 90
  message = "46 batches for calibration take 1472 images, .* train has 1442"
  with pytest.raises(ValueError, match=message):
    task.spare(46)


def test_loss_is_the_cross_entropy_of_labels(task):
  [batch] = task.spare(1)
  logits = jax.jit(task.model.apply)({"params": task.params}, *batch.args)
  chances = jax.nn.softmax(logits)[jnp.arange(32), batch.labels]
  expected = -jnp.mean(jnp.log(chances))
  assert jax.jit(task.loss)(task.params, batch) == pytest.approx(
    float(expected), 1e-5
  )
  gradients = plan.leaves(jax.jit(jax.grad(task.loss))(task.params, batch))
  assert all(np.abs(leaf).max() > 0 for leaf in gradients.values())


def test_job_trains_once(tmp_path, capsys, monkeypatch):
  calls, fit = [], train.fit

  def counting(*args, **kwargs):
    calls.append(kwargs["steps"])
    if len(calls) == 1:
      raise KeyboardInterrupt
    return fit(*args, **kwargs)

  monkeypatch.setattr(train, "fit", counting)
  ptq.dry_run(CONFIG)
  assert "stage_1/block_1/conv/kernel" in capsys.readouterr().out
  with pytest.raises(KeyboardInterrupt):
    ptq.run(CONFIG, tmp_path)
  metrics = ptq.run(CONFIG, tmp_path)
  assert calls == [6, 6]
  assert ptq.run(CONFIG, tmp_path) == json.loads(json.dumps(metrics))
  assert calls == [6, 6]
  low, high = metrics["rtn-3bit"], metrics["rtn-8bit"]
  assert low["logits_sqnr_db"] + 15 < high["logits_sqnr_db"] < 60
  assert high["cosine"] > low["cosine"]
  assert 0 <= high["accuracy"] <= 1
  assert "SQNR dB" in capsys.readouterr().out


def test_bad_config_is_found_before_the_training(tmp_path, monkeypatch):
  monkeypatch.setattr(train, "fit", None)
  weights = {"bits": 3, "granularity": ["per_block", -2, 5]}
  config = CONFIG | {"weights": weights, "sweep": {"rtn": {}}}
  with pytest.raises(configs.InputError, match="blocks of 5 do not divide"):
    ptq.run(config, tmp_path)
  config = CONFIG | {"data": {"source": "digits", "split": "valid"}}
  with pytest.raises(configs.InputError, match="digits: no split 'valid'"):
    ptq.run(config, tmp_path)
  config = CONFIG | {"model": {"path": "repvgg-z9"}}
  with pytest.raises(configs.InputError, match=r"^repvgg-z9: no such path"):
    ptq.run(config, tmp_path)
