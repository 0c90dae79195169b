"""Reads RepVGG as timm publishes it: `timm/repvgg_a1.rvgg_in1k` and the like.

The names in those files, beside ours:

    stem, stages.{i - 1}.{j}     stage_0/block_0, stage_{i}/block_{j}
      .conv_kxk.{conv,bn}          {conv,norm}_3x3
      .conv_1x1.{conv,bn}          {conv,norm}_1x1
      .identity                    norm_identity
    head.fc                      head
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantlab import hub
from quantlab.models import repvgg, weights

_MODULES = {
  "conv_3x3": "conv_kxk.conv",
  "norm_3x3": "conv_kxk.bn",
  "conv_1x1": "conv_1x1.conv",
  "norm_1x1": "conv_1x1.bn",
  "norm_identity": "identity",
}
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


class Checkpoint(NamedTuple):
  """A published classifier, and what it wants to see.

  Attributes:
    model: branched; `model.apply(variables, images)` gives logits.
    variables: its `params` and `batch_stats`; `repvgg.fuse` takes them.
    size: height and width of the images. The published accuracies are of the
      centres of images whose shorter side is `size / 0.875`.
    mean: of red, green and blue in 0..1, to be subtracted.
    std: of the same, to divide by.
    folder: where the files lie.
  """

  model: repvgg.RepVGG
  variables: dict[str, Any]
  size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  folder: pathlib.Path


class Names:
  """timm's names; what `weights.read` takes."""

  prefix = ""

  def keys(self, path: tuple[str, ...]) -> tuple[str, ...]:
    """Names that a leaf of the variables may have in a file.

    Example:
      >>> path = ("batch_stats", "stage_2", "block_0", "norm_3x3", "var")
      >>> Names().keys(path)
      ('stages.1.0.conv_kxk.bn.running_var',)
    """
    _, stage, *inner, leaf = path
    if stage == "head":
      return (f"head.fc.{_LEAVES[leaf]}",)
    block, module = inner
    i, j = (int(name.rpartition("_")[2]) for name in (stage, block))
    parent = f"stages.{i - 1}.{j}" if i else "stem"
    return (f"{parent}.{_MODULES[module]}.{_LEAVES[leaf]}",)


def load(name: str | pathlib.Path, *, dtype: Any = jnp.float32) -> Checkpoint:
  """Loads a published RepVGG: A0, A1, B0, B1 or B1g4.

  Args:
    name: a local folder or a hub id such as `"timm/repvgg_a1.rvgg_in1k"`.
    dtype: of the variables; None keeps the file's.

  Returns:
    The checkpoint.

  Raises:
    FileNotFoundError: the folder or one of its files is missing.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a file is broken or does not fit its config, or the config is
      of another network.
  """
  folder = hub.folder(name)
  file = folder / "config.json"
  published = hub.read_json(file)
  architecture = published.get("architecture")
  known = {f"repvgg_{key}": config for key, config in repvgg.CONFIGS.items()}
  if architecture not in known:
    raise ValueError(f"{file}: {architecture=} is not one of {sorted(known)}")
  try:
    data = published["pretrained_cfg"]
    size, mean, std = data["input_size"][1], data["mean"], data["std"]
    config = dataclasses.replace(
      known[architecture], classes=published["num_classes"]
    )
  except KeyError as error:
    raise ValueError(f"{file}: {error} is missing") from None
  model = repvgg.RepVGG(config)
  image = jax.ShapeDtypeStruct((1, size, size, len(mean)), jnp.float32)
  like = jax.eval_shape(model.init, jax.random.key(0), image)
  variables = weights.read(folder, Names(), like, dtype=dtype)
  return Checkpoint(model, variables, size, tuple(mean), tuple(std), folder)
