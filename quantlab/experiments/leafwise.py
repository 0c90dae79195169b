"""Quantizes a tree leaf by leaf, each finished leaf on disk.

Beside the weights and the packed result, memory holds one leaf's work.
"""

import logging
import math
import pathlib
import time
from typing import Any

import jax

from quantlab import checkpoint
from quantlab.core import qtensor
from quantlab.experiments import (
  configs,
  evaluate,
  progress,
  variants,
  workdir,
)
from quantlab.transforms import compose, plan

_LOG = logging.getLogger(__name__)


def quantize(
  variant: variants.Variant,
  params: Any,
  sensitivity: Any,
  folder: workdir.Workdir,
  track: progress.Track,
) -> tuple[Any, list[dict[str, Any]]]:
  """Makes a variant of some parameters, or what is missing of it.

  Args:
    variant: the plan.
    params: a tree of float arrays.
    sensitivity: a tree like it, for rules that ask for it; None if none does.
    folder: where leaves, and then the whole, are stored.
    track: shows progress.

  Returns:
    The packed tree, and a row of the report for each leaf.

  Raises:
    InputError: a leaf cannot be quantized, or nothing can be stored. It names
      the leaf or the file.
  """
  leaves = plan.leaves(params)
  placed, _ = variant.place(leaves)
  found = sum(folder.leaf(variant.name, path).exists() for path in leaves)
  if found:
    _LOG.info("%s: %d leaves are finished", variant.name, found)
  matter = plan.leaves(sensitivity) if variant.sensitive else {}
  packed, rows = [], []
  for path, rule in track(list(placed.items()), f"{variant.name} leaves"):
    place = folder.leaf(variant.name, path)
    told = matter[path] if rule.sensitive else None
    tensor, row = _leaf(rule, path, leaves[path], told, place)
    packed.append(tensor)
    rows.append(row)
  tree = jax.tree.unflatten(jax.tree.structure(params), packed)
  if not folder.params(variant.name).exists():
    with configs.explained():
      checkpoint.save(folder.params(variant.name), tree)
  return tree, rows


def _leaf(
  rule: variants.Rule,
  path: str,
  leaf: jax.Array,
  sensitivity: jax.Array | None,
  place: pathlib.Path,
) -> tuple[Any, dict[str, Any]]:
  """Quantizes one leaf, or finds it finished at `place`."""
  if place.exists():
    found = workdir.restore(place)
    return found["tensor"], found["row"]
  start = time.perf_counter()
  with configs.explained(), plan.naming(path):
    tensor = plan.quantize_leaf(rule.quantizer, leaf, sensitivity=sensitivity)
  jax.block_until_ready(tensor)
  seconds = time.perf_counter() - start
  error = evaluate.damage(leaf, evaluate.decode(tensor))
  row = {
    "path": path,
    "shape": list(leaf.shape),
    "rule": rule.pattern,
    "method": rule.method,
    "bits": rule.bits,
    "stored_bits": qtensor.nbits(tensor),
    "bits_per_weight": qtensor.nbits(tensor) / math.prod(leaf.shape),
    "sqnr_db": evaluate.sqnr(error),
    "max_abs_error": error.worst,
    "seconds": seconds,
    "signal": error.signal,
    "noise": error.noise,
  }
  if rule.quantizer is not compose.keep():
    with configs.explained():
      checkpoint.save(place, {"tensor": tensor, "row": row})
  return tensor, row
