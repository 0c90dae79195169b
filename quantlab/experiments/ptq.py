"""Post-training quantization of a pretrained sentence encoder.

Every variant of a sweep is made leaf by leaf, stored packed, decoded, and
evaluated on retrieval. Nothing that is finished is done twice; see `workdir`.
"""

from collections.abc import Mapping
import logging
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantlab import checkpoint, hub
from quantlab.core import qtensor
from quantlab.experiments import (
  configs,
  evaluate,
  leafwise,
  progress,
  report,
  sizes,
  variants,
  workdir,
)
from quantlab.models import bert, families
from quantlab.models import checkpoint as pretrained
from quantlab.transforms import plan

Array = jax.Array
Params = Any

_LOG = logging.getLogger(__name__)


class Reference(NamedTuple):
  """The float model that variants are compared with.

  Attributes:
    params: its parameters.
    embed: the task's embeddings as a function of parameters.
    embeddings: those of `params`.
    result: its row of the report.
  """

  params: Params
  embed: evaluate.Embed
  embeddings: Any
  result: dict[str, Any]


def run(config: Any, workdir_: str | os.PathLike[str]) -> dict[str, Any]:
  """Runs the job of a config, or what is left of it.

  Args:
    config: an `ml_collections.ConfigDict` or a dict; see `variants` for its
      sections. `configs/ptq/minilm.py` is one.
    workdir_: the folder for all results.

  Returns:
    Scores by variant, the float model's first; `workdir_/report.json` holds
    them with the rows of every layer.

  Raises:
    InputError: a `ValueError` of one line that says what is wrong with the
      config, the model, the data or the folder.
  """
  config = configs.plain(config)
  every = variants.variants(config)
  model = _bound(pretrained_encoder, config, "model")
  data = _bound(evaluate.task, config, "data")
  folder = workdir.Workdir(workdir_)
  with configs.explained():
    encoder = pretrained_encoder(*model.args, **model.kwargs)
    task = evaluate.task(*data.args, **data.kwargs)
  leaves = plan.leaves(encoder.params)
  identity = {
    "config": config,
    "weights": workdir.fingerprint(leaves),
    "data": task.pairs.sha256,
  }
  environment = report.environment()
  folder.begin(identity, environment)
  check(every, leaves, folder)
  with progress.bars() as track:
    reference = _reference(encoder, task, folder, track)
    results = {"float": reference.result}
    for variant in track(every, "variants"):
      found = folder.result(variant.name)
      results[variant.name] = found or _variant(
        variant, reference, folder, track
      )
  about = identity | {"environment": environment, "task": task.pairs.source}
  with configs.explained():
    report.write(folder.root, results, about)
  for variant in every:
    folder.tidy(variant.name)
  report.show(results)
  return report.scores(results)


def dry_run(config: Any) -> None:
  """Prints what a run would store, reading no weights.

  Args:
    config: as of `run`.

  Raises:
    InputError: as of `run`.
  """
  config = configs.plain(config)
  every = variants.variants(config)
  model = _bound(pretrained_encoder, config, "model")
  _bound(evaluate.task, config, "data")
  with configs.explained():
    leaves = plan.leaves(shapes(model.arguments["path"]))
  found = {variant.name: sizes.sizes(variant, leaves) for variant in every}
  report.show_sizes(found, every[0].place(leaves)[1])


def pretrained_encoder(
  path: str, *, max_tokens: int | None = None
) -> pretrained.Checkpoint:
  """Loads a model: the section `model` of a config.

  Args:
    path: `"minilm"`, a local folder or a hub id.
    max_tokens: cuts texts shorter than the model's files ask for.
  """
  return pretrained.load(path, max_tokens=max_tokens)


def shapes(path: str) -> Params:
  """The parameters of a model as shapes, from its `config.json` alone."""
  file = hub.folder(path) / "config.json"
  _, config = families.parse(hub.read_json(file), file=file)
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  model = bert.Bert(config)
  return jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]


def check(
  every: list[variants.Variant],
  leaves: Mapping[str, Array],
  folder: workdir.Workdir,
) -> None:
  """Finds what would stop the run, before any work.

  Raises:
    InputError: it names the leaf.
  """
  for pattern in every[0].place(leaves)[1]:
    _LOG.warning("rule %r matches no leaf", pattern)
  todo = [v for v in every if not folder.result(v.name)]
  if len(todo) < len(every):
    done = len(every) - len(todo)
    _LOG.info("%d of %d variants are finished", done, len(every))
  for path, leaf in leaves.items() if todo else ():
    with configs.explained(), plan.naming(path):
      plan.check(leaf)
  for variant in todo:
    sizes.sizes(variant, leaves)


def _bound(function: Any, config: Mapping[str, Any], name: str) -> Any:
  section = variants.section(config, name)
  return configs.bind(function, section, f"config.{name}")


def _reference(
  encoder: pretrained.Checkpoint,
  task: evaluate.Task,
  folder: workdir.Workdir,
  track: progress.Track,
) -> Reference:
  embed = evaluate.embedder(encoder, task)
  place = folder.float_scores()
  if place.exists():
    found = workdir.restore(place)
    return Reference(
      encoder.params, embed, found["embeddings"], found["result"]
    )
  start = time.perf_counter()
  vectors = embed(encoder.params, lambda batches: track(batches, "float"))
  seconds = time.perf_counter() - start
  _LOG.info("float: evaluated in %.1f s, with compilation", seconds)
  bits = qtensor.bits_per_weight(encoder.params)
  result = {
    "method": "float",
    "bits": round(bits),
    "bits_per_weight": bits,
    "sqnr_db": None,
    "max_abs_error": 0.0,
    **evaluate.compare(vectors, vectors),
    "evaluate_seconds": seconds,
    "model_bytes": qtensor.nbits(encoder.params) // 8,
    "layers": [],
  }
  with configs.explained():
    checkpoint.save(place, {"embeddings": vectors, "result": result})
  return Reference(encoder.params, embed, vectors, result)


def _variant(
  variant: variants.Variant,
  reference: Reference,
  folder: workdir.Workdir,
  track: progress.Track,
) -> dict[str, Any]:
  """Quantizes, stores and evaluates one variant."""
  packed, rows = leafwise.quantize(variant, reference.params, folder, track)
  start = time.perf_counter()
  vectors = reference.embed(
    evaluate.decode(packed), lambda batches: track(batches, variant.name)
  )
  seconds = time.perf_counter() - start
  result = {
    "method": variant.method,
    "bits": variant.bits,
    **report.total(rows),
    **evaluate.compare(vectors, reference.embeddings),
    "evaluate_seconds": seconds,
    "model_bytes": qtensor.nbits(packed) // 8,
    "layers": rows,
  }
  _LOG.info(
    "%s: %.3f bits per weight, cosine %.4f; evaluated in %.1f s",
    variant.name,
    result["bits_per_weight"],
    result["cosine"],
    seconds,
  )
  with configs.explained():
    folder.finish(variant.name, result)
  return result
