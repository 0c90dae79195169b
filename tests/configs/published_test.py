"""Configs of published tables, whose models and data are not at hand."""

import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest

from quantlab.experiments import configs, ptq
from quantlab.models import repvgg
from tests import tiny_causal, tiny_tasks

FOLDER = pathlib.Path(__file__).parents[2] / "configs/published"
FILES = sorted(file.stem for file in FOLDER.glob("*.py"))

_BERT_TINY = {
  "model_type": "bert",
  "vocab_size": 30522,
  "hidden_size": 128,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 512,
}
_LLAMA_7B = {
  "model_type": "llama",
  "vocab_size": 32000,
  "hidden_size": 4096,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "intermediate_size": 11008,
}
# The published config.json where it matters, how many leaves are quantized.
PUBLISHED = {
  "splitquant_bert_tiny": (
    _BERT_TINY | {"id2label": {str(i): str(i) for i in range(6)}},
    2 * 6 + 2,  # pooler and head
  ),
  "splitquant_bert_tiny:spam": (_BERT_TINY, 2 * 6 + 2),
  "splitquant_llama": (
    _LLAMA_7B
    | {
      "vocab_size": 128256,
      "hidden_size": 2048,
      "num_hidden_layers": 16,
      "num_key_value_heads": 8,
      "intermediate_size": 8192,
      "tie_word_embeddings": True,
    },
    16 * 7,
  ),
  "easyquant_bloom": (
    {
      "model_type": "bloom",
      "vocab_size": 250880,
      "n_embed": 1024,
      "n_layer": 24,
      "num_attention_heads": 16,
    },
    24 * 4,
  ),
  "easyquant_llama": (_LLAMA_7B, 32 * 7),
  "icquant_llama": (_LLAMA_7B, 32 * 7),
}
CASES = [*PUBLISHED, "cfws_repvgg"]
ROWS = {
  "splitquant_bert_tiny": {
    *("plain-2bit", "plain-4bit", "split-2bit", "split-4bit"),
    *("exact-zero-plain-2bit", "exact-zero-plain-4bit"),
    *("exact-zero-split-2bit", "exact-zero-split-4bit"),
    *("symmetric-plain-8bit", "symmetric-split-8bit"),
  },
  "splitquant_llama": {
    f"{method}-{bits}bit-{rows}"
    for method in ("plain", "split")
    for bits in (2, 4, 8)
    for rows in ("per_output", "per_tensor")
  },
  "easyquant_bloom": {
    f"{method}-4bit"
    for method in ("rtn", "easyquant", "outliers-alone", "range-alone")
  },
  "easyquant_llama": {"rtn-4bit", "easyquant-4bit"},
  "icquant_llama": {
    f"{method}-{bits}bit"
    for method in (
      *("rtn", "tables", "icquant-rtn", "icquant-sk"),
      *("icquant-rtn-8pct", "icquant-sk-8pct"),
    )
    for bits in (2, 3, 4)
  },
  "cfws_repvgg": {
    *("plain-8bit", "cfws-8bit"),
    *(
      f"{method}-8bit-{acts}"
      for method in ("plain", "cfws")
      for acts in ("minmax", "kl", "kl_improved")
    ),
    *("cfws-per-tensor-8bit-kl_improved", "cfws-whole-8bit-kl_improved"),
  },
}


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def _module(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _config(case):
  name, _, argument = case.partition(":")
  return _module(name).get_config(*filter(None, [argument]))


def _run(config, folder):
  return ptq.run(configs.plain(config), folder / "run")


def test_all_files_are_tested():
  assert {case.partition(":")[0] for case in CASES} == set(FILES) == {*ROWS}


@pytest.mark.parametrize("name", FILES)
def test_header_names_paper_command_and_model(name):
  module = _module(name)
  header = " ".join(module.__doc__.split())
  assert re.search(r"arXiv \d{4}\.\d{5}", header)
  assert f"launch.ptq --config=configs/published/{name}.py" in header
  assert "Reconstruction" in header or "reconstruction" in header
  assert "Not run here, where there is no network" in header


@pytest.mark.parametrize("case", CASES)
def test_rows_are_the_promised_ones(case):
  config = configs.plain(_config(case))
  job = ptq.read(config)  # with all other sections
  found = {variant.name for variant in job.variants}
  assert found == ROWS[case.partition(":")[0]]
  if "sensitivity" not in config:
    assert not any(variant.sensitive for variant in job.variants)
  assert {v.acts for v in job.variants if v.acts} == set(job.acts)


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(case, marks=[pytest.mark.study] * (case == "easyquant_llama"))
    for case in PUBLISHED  # whose layers are icquant_llama's
  ],
)
def test_rules_cover_the_published_model(tmp_path, case):
  published, count = PUBLISHED[case]
  (tmp_path / "config.json").write_text(json.dumps(published))
  config = _config(case)
  config.model.path = str(tmp_path)
  job = ptq.read(configs.plain(config))
  # Tracing takes a while, and the bits make no difference.
  bits = job.variants[0].bits
  leaves = ptq.check(job, [v for v in job.variants if v.bits == bits])
  for variant in job.variants:
    placed, unused = variant.place(leaves)
    assert unused == []
    swept = [path for path, rule in placed.items() if rule.swept]
    assert len(swept) == count
    assert all(path.endswith("/kernel") for path in swept)


@pytest.mark.parametrize(
  ("size", "count"),
  [("a0", 22), pytest.param("a1", 22, marks=pytest.mark.study), ("b0", 28)],
)
def test_rules_cover_the_published_repvgg(size, count):
  config = _config("cfws_repvgg")
  # Its shapes, from what the job would train.
  config.model.path = f"repvgg-{size}"
  config.data.update(source="digits", split="test", channels=3)
  job = ptq.read(configs.plain(config))
  leaves = ptq.check(job, job.variants)  # and the sites of activations
  for variant in job.variants:
    placed, unused = variant.place(leaves)
    assert unused == []
    assert sum(rule.swept for rule in placed.values()) == count
    assert placed["head/kernel"].bits == 8


@pytest.mark.parametrize("case", CASES)
def test_offline_is_one_clear_error(tmp_path, case):
  config = _config(case)
  message = f"^{re.escape(config.model.path)}: no such path, and HF_HUB_OFFLINE"
  with pytest.raises(configs.InputError, match=message) as error:
    _run(config, tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "case", ["emotion", pytest.param("spam", marks=pytest.mark.study)]
)
def test_splitquant_on_a_tiny_classifier(tmp_path, case):
  config = _config(f"splitquant_bert_tiny:{case}")
  classes = {"emotion": 6, "spam": 2}[case]
  labels = [f"LABEL_{i}" for i in range(classes)]
  model = tiny_tasks.write_classifier(tmp_path / "model", labels)
  column = config.data.text_column
  file = tiny_tasks.write_texts(tmp_path / "texts.parquet", column, classes)
  config.model.path = str(model)
  config.data.update(source=str(file), split="train")
  # The tiny model's shortest rows have 64 weights.
  config.methods["split"]["inner"]["granularity"] = ("per_block", -2, 64)
  config.weights.update(method="split", bits=2)
  found = _run(config, tmp_path)
  assert list(found) == ["float", "split-2bit"]
  assert 0 <= found["split-2bit"]["accuracy"] <= 1
  [report] = [
    row
    for row in json.loads((tmp_path / "run/report.json").read_text())["layers"]
    if row["path"] == "classifier/kernel"
  ]
  # Three planes of codes, or one where there are two outputs.
  planes = report["bits_per_weight"]
  assert planes > 6 if case == "emotion" else 2 < planes < 4


def _tiny_causal(tmp_path, case, kind):
  config = _config(case)
  # Kernels of few shapes: each is compiled for.
  sizes = {} if kind == "bloom" else {"intermediate_size": tiny_causal.D}
  published = tiny_causal.CONFIGS[kind] | sizes
  model = tiny_causal.write(tmp_path / "model", published)
  config.model.path = str(model)
  if "tokens" in config.data:
    file = tiny_tasks.write_rows(tmp_path / "rows.parquet")
    config.data.update(source=str(file), tokens=32, limit=2)
  return config


@pytest.mark.study
def test_splitquant_on_a_tiny_llama(tmp_path):
  config = _tiny_causal(tmp_path, "splitquant_llama", "llama3")
  file = tiny_tasks.write_questions(tmp_path / "arc.parquet")
  config.data.update(source=str(file))
  config.weights.update(method="split", bits=4, granularity="per_tensor")
  found = _run(config, tmp_path)
  assert list(found) == ["float", "split-4bit-per_tensor"]
  # Four of the questions have four choices.
  for row in found.values():
    assert row["accuracy"] in (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.study  # the same job as with ICQuant
@pytest.mark.parametrize("kind", ["bloom", "llama"])
def test_easyquant_on_a_tiny_model(tmp_path, kind):
  config = _tiny_causal(tmp_path, f"easyquant_{kind}", kind)
  config.weights.update(method="easyquant")
  found = _run(config, tmp_path)
  assert list(found) == ["float", "easyquant-4bit"]
  assert found["easyquant-4bit"]["sqnr_db"] > 15
  assert np.isfinite(found["easyquant-4bit"]["perplexity"])


def test_icquant_on_a_tiny_llama(tmp_path):
  config = _tiny_causal(tmp_path, "icquant_llama", "llama")
  other = tiny_tasks.write_rows(tmp_path / "other.parquet", words=600)
  config.data.update(calibration=str(other))
  config.sensitivity.batches = 3
  config.weights.update(method="icquant-sk", bits=2)
  found = _run(config, tmp_path)
  assert list(found) == ["float", "icquant-sk-2bit"]
  assert np.isfinite(found["icquant-sk-2bit"]["perplexity"])
  assert (tmp_path / "run/sensitivity").exists()


@pytest.mark.study
def test_cfws_on_a_tiny_repvgg(tmp_path, monkeypatch):
  small = repvgg.RepVGGConfig((4, 8), (1, 2), (1, 2), classes=3)
  monkeypatch.setitem(repvgg.CONFIGS, "a1", small)
  config = _config("cfws_repvgg")
  model = tiny_tasks.write_repvgg(tmp_path / "model", "a1")
  folder = tiny_tasks.write_images(tmp_path / "images", classes=3, count=12)
  config.model.path = str(model)
  config.data.update(source=str(folder), size=10, crop=8, batch_size=6)
  config.sweep = {"cfws": {"acts": ("", "kl_improved")}}
  found = _run(config, tmp_path)
  assert list(found) == ["float", "cfws-8bit", "cfws-8bit-kl_improved"]
  _, weights, both = found.values()
  assert weights["precision"] == "W8"
  assert both["precision"] == "W8A8"
  assert 15 < both["logits_sqnr_db"] < weights["logits_sqnr_db"]
