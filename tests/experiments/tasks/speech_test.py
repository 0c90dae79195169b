"""A tiny denoiser, from schemes over a budget to a file that is enhanced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab import checkpoint
from quantlab.data import sound, synthetic_speech
from quantlab.experiments import configs, ptq, schemes
from quantlab.experiments.speech import denoise, integers
from quantlab.methods import rnn_mixed
from quantlab.models import denoiser, stft
from quantlab.transforms import plan
from tests import draws

_FP16 = ["cast", "float16"]
_BYTE = {"method": "rnn_activation", "bits": 8}
_RNN = [
  ["^rnn_./in$", _BYTE],
  ["(hidden|cell)/out$", _BYTE],
  ["gates/out$", "q12"],
]
_WEIGHTS = {"method": "rnn_weights", "gates": 4, "bits": 8}
_DENSE = "dense_activation"
_UNITS = 6


def _config(folder, **changes):
  return {
    "task": "speech",
    "evaluate": "decoded",
    "model": {"path": str(folder / "float")},
    "data": {"source": str(folder / "speech"), "batch_size": 2},
    "rules": {
      "all": [[".*", "weights"]],
      "mixed": [["rnn_.*kernel$", "weights"], [".*", _FP16]],
      "uniform": [
        ["rnn_.*kernel$", "weights"],
        ["kernel$", {"method": "rtn", "bits": 8, "symmetric": True}],
        [".*", _FP16],
      ],
    },
    "methods": {
      "fp16": {"method": "cast", "dtype": "float16", "rules": "all"},
      "mixed": {**_WEIGHTS, "rules": "mixed", "acts": "rnn"},
      "uniform": {**_WEIGHTS, "rules": "uniform", "acts": "all"},
    },
    "acts": {
      "rnn": {"rules": [*_RNN, [".*", "keep"]], "batches": 1},
      "all": {
        "rules": [*_RNN, ["^dense_./(in|out)$", _DENSE], [".*", "keep"]],
        "batches": 1,
      },
    },
    "weights": {"method": None},
    "sweep": {"fp16": {}, "mixed": {}, "uniform": {}},
    "budget": {
      "bytes": [280_000],
      "layers": {"dense": "^dense", "rnn": "^rnn"},
      "choices": ["fp16", "uniform-8bit"],
    },
  } | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A float model, a few recordings, and schemes of a run."""
  folder = tmp_path_factory.mktemp("denoise")
  model = denoiser.TinyDenoiser("lstm", _UNITS)
  x = jnp.zeros((1, 2, stft.BINS))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  checkpoint.save(folder / "float/params", draws.like(shapes, 0.1))
  rng = np.random.default_rng(0)
  for part in ("clean", "noisy"):
    (folder / "speech" / part).mkdir(parents=True)
  for i, seconds in enumerate((0.3, 0.35)):
    clean = synthetic_speech.utterance(rng, seconds)
    noisy = clean + 0.05 * synthetic_speech.noise(rng, len(clean))
    sound.write(folder / f"speech/clean/{i}.wav", clean)
    sound.write(folder / f"speech/noisy/{i}.wav", noisy)
  return folder


@pytest.fixture(scope="module")
def results(folder):
  return ptq.run(_config(folder), folder / "schemes")


def test_masks_are_compared_over_whole_utterances(results):
  errors = {name: row["mask_rmse"] for name, row in results.items()}
  assert errors["float"] == 0
  assert 0 < errors["fp16"] < 1e-3
  assert errors["fp16"] < errors["mixed-8bit"] < errors["uniform-8bit"]
  assert results["float"]["si_sdr"] == pytest.approx(
    results["fp16"]["si_sdr"], abs=0.01
  )


def test_a_budget_takes_each_layer_from_a_variant(results, folder):
  name = "budget-280000"
  row = results[name]
  fp16, uniform = results["fp16"], results["uniform-8bit"]
  assert uniform["model_bytes"] < row["model_bytes"] <= 280_000
  assert row["model_bytes"] < fp16["model_bytes"]
  # The dense layers' activations cost most, so they stay.
  assert row["chosen"] == {"dense": "fp16", "rnn": "uniform-8bit"}
  scheme = schemes.restore(folder / "schemes" / name)
  assert scheme.params["dense_0"]["kernel"].dtype == jnp.float16
  assert scheme.params["rnn_0"]["input"]["kernel"].codes.bits == 8
  assert {site.split("/")[0] for site in scheme.state.stats} == {
    *("rnn_0", "rnn_1")
  }
  assert (folder / "schemes" / name / "chosen.json").exists()


def test_a_finished_run_is_not_done_again(results, folder, monkeypatch):
  monkeypatch.setattr(schemes, "join", None)
  again = ptq.run(_config(folder), folder / "schemes")
  assert again["budget-280000"] == results["budget-280000"]


@pytest.mark.parametrize(
  ("changes", "problem"),
  [
    ({"bytes": [10]}, r"budget\.bytes: 10 is below \d+, the least"),
    ({"choices": ["fp8"]}, r"budget\.choices: there is no 'fp8'"),
    ({"metric": "si_sdr"}, r"budget\.metric: there is no 'si_sdr'"),
    ({"layers": {"rnn": "^rnn"}}, r"layers: dense_0/bias is in none of"),
    ({"layers": {"rnn": "(rnn"}}, r"budget\.layers: '\(rnn' is not a pattern"),
    ({"bites": 3}, r"budget\.bites: .* no such argument"),
  ],
  ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_budget_is_named(results, folder, changes, problem):
  config = _config(folder)
  config["budget"] = config["budget"] | changes
  where = folder / "wrong"
  if "bytes" in changes:  # known once the choices are made
    where = folder / "schemes"
    (where / "run.json").unlink()
  with pytest.raises(configs.InputError, match=problem):
    ptq.run(config, where)


def test_a_file_is_enhanced_as_offline(results, folder, tmp_path):
  source = folder / "speech/noisy/0.wav"
  output = tmp_path / "out.wav"
  name = str(folder / "schemes/mixed-8bit")
  found = denoise.run(name, str(source), str(output), str(tmp_path / "work"))
  assert "real-time factor" in found[1]
  assert (tmp_path / "work/out.png").stat().st_size > 10_000
  noisy, scheme = sound.read(source), schemes.restore(name)
  spectra = stft.analyse(noisy)
  model = denoiser.of_params(scheme.params).clone(by_frame=True)
  masks, _ = ql.apply(
    model,
    {"params": scheme.params},
    jnp.asarray(np.abs(spectra))[None],
    acts=scheme.acts,
    state=scheme.state,
  )
  expected = stft.synthesise(spectra * np.asarray(masks[0]), len(noisy))
  np.testing.assert_allclose(sound.read(output), expected, atol=2e-4)


def test_integers_agree_with_fake_quantization(results, folder):
  scheme = schemes.restore(folder / "schemes/mixed-8bit")
  signal = sound.read(folder / "speech/noisy/0.wav")
  x = jnp.asarray(np.abs(stft.analyse(signal)))[None]
  found = integers.compare(scheme, x)
  assert found.step == 1
  assert found.equal > 0.8
  assert found.within_one == 1
  assert found.mask_rmse < 1e-3
  arguments = str(folder / "speech/noisy/0.wav"), str(folder / "whole.wav")
  lines = denoise.run(
    str(folder / "schemes/mixed-8bit"), *arguments, in_integers=True
  )
  assert "100.00% within one" in lines[1]
  assert len(sound.read(folder / "whole.wav")) == len(signal)
  half = schemes.restore(folder / "schemes/fp16")
  with pytest.raises(ValueError, match="rnn_0/in: is not quantized"):
    integers.compare(half, x)


@pytest.mark.parametrize(
  ("changes", "problem"),
  [
    ({"checkpoint": "nowhere"}, "nowhere: no model is there"),
    ({"source": "nowhere.wav"}, r"nowhere\.wav: no such file"),
    ({"output": "no/folder/x.wav"}, "no folder no/folder"),
  ],
)
def test_a_wrong_path_is_named(folder, tmp_path, changes, problem):
  arguments = {
    "checkpoint": str(folder / "float"),
    "source": str(folder / "speech/noisy/0.wav"),
    "output": str(tmp_path / "x.wav"),
  }
  with pytest.raises(configs.InputError, match=problem):
    denoise.run(**arguments | changes)


def test_configs_place_what_the_method_does():
  import importlib.util
  import pathlib

  root = pathlib.Path(__file__).parents[3]
  spec = importlib.util.spec_from_file_location(
    "schemes", root / "configs/rnn/schemes.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for cell in rnn_mixed.CELLS:
    job = ptq.read(configs.plain(module.get_config(f"{cell}128")))
    model = denoiser.TinyDenoiser(cell, 128, by_frame=True)
    x = jax.ShapeDtypeStruct((1, 2, stft.BINS), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    sites = ql.sites(model, variables, x)
    by_name = {variant.name: variant for variant in job.variants}
    std3 = ql.deviations(3.0)
    expected = {
      "mixed-8bit-max": rnn_mixed.mixed(cell, cells=rnn_mixed.q4()),
      "mixed-8bit-std3": rnn_mixed.mixed(
        cell, inputs=std3, cells=rnn_mixed.q4()
      ),
      "uniform-8bit-all_max": rnn_mixed.uniform(cell, cells=rnn_mixed.q4()),
      "fp16": rnn_mixed.fp16(),
    }
    if cell == "lstm":
      expected["mixed-8bit-paper"] = rnn_mixed.mixed(cell, inputs=std3)
      expected["uniform-8bit-all_cells_max"] = rnn_mixed.uniform(cell)
    for name, plans in expected.items():
      acts = job.acts[by_name[name].acts].plan
      assert acts.assign(sites) == plans.acts.assign(sites)
      placed, _ = by_name[name].place(plan.leaves(variables["params"]))
      found = {path: rule.quantizer for path, rule in placed.items()}
      assert found == plans.weights.assign(variables["params"])
