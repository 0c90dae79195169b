"""What tells the published BERT families apart: keys of config and tensors."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

from quantlab.models import bert

_BERT_TENSORS = {
  "embeddings/word": "embeddings.word_embeddings",
  "embeddings/position": "embeddings.position_embeddings",
  "embeddings/token_type": "embeddings.token_type_embeddings",
  "embeddings/norm": "embeddings.LayerNorm",
  "embeddings/project": "embeddings_project",
  "layer/attention/query": "encoder.layer.{}.attention.self.query",
  "layer/attention/key": "encoder.layer.{}.attention.self.key",
  "layer/attention/value": "encoder.layer.{}.attention.self.value",
  "layer/attention/out": "encoder.layer.{}.attention.output.dense",
  "layer/attention/norm": "encoder.layer.{}.attention.output.LayerNorm",
  "layer/mlp/up": "encoder.layer.{}.intermediate.dense",
  "layer/mlp/down": "encoder.layer.{}.output.dense",
  "layer/mlp/norm": "encoder.layer.{}.output.LayerNorm",
}
_BERT_HEAD = {"pooler": "pooler.dense", "classifier": "classifier"}
_DISTILBERT_TENSORS = _BERT_TENSORS | {
  "layer/attention/query": "transformer.layer.{}.attention.q_lin",
  "layer/attention/key": "transformer.layer.{}.attention.k_lin",
  "layer/attention/value": "transformer.layer.{}.attention.v_lin",
  "layer/attention/out": "transformer.layer.{}.attention.out_lin",
  "layer/attention/norm": "transformer.layer.{}.sa_layer_norm",
  "layer/mlp/up": "transformer.layer.{}.ffn.lin1",
  "layer/mlp/down": "transformer.layer.{}.ffn.lin2",
  "layer/mlp/norm": "transformer.layer.{}.output_layer_norm",
}
# The second name of each pair is that of the first TensorFlow releases.
_LEAVES = {
  "kernel": ("weight",),
  "embedding": ("weight",),
  "scale": ("weight", "gamma"),
  "bias": ("bias", "beta"),
}
_SIZES = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "intermediate_size",
)


class Family(NamedTuple):
  """One published naming scheme.

  Attributes:
    prefix: in front of every tensor of a checkpoint with a head, but for those
      of the head itself.
    tensors: module of ours to the published module.
    config: field of the model's config to the key of `config.json`, where the
      two differ.
    fixed: fields of the model's config that `config.json` does not tell.
    padded_positions: whether positions count from `pad_token_id + 1`.
  """

  prefix: str
  tensors: Mapping[str, str] = _BERT_TENSORS
  config: Mapping[str, str] = {}
  fixed: Mapping[str, Any] = {}
  padded_positions: bool = False

  def keys(self, path: tuple[str, ...]) -> tuple[str, ...]:
    """Names that a parameter may have in a file, without the prefix.

    Example:
      >>> FAMILIES["bert"].keys(("layer_3", "mlp", "up", "kernel"))
      ('encoder.layer.3.intermediate.dense.weight',)
    """
    stem, _, index = path[0].rpartition("_")
    block = stem if index.isdigit() else path[0]
    module = self.tensors["/".join((block, *path[1:-1]))].format(index)
    return tuple(f"{module}.{leaf}" for leaf in _LEAVES[path[-1]])


_ROBERTA = Family("roberta.", padded_positions=True)

FAMILIES: dict[str, Family] = {
  "bert": Family("bert.", tensors=_BERT_TENSORS | _BERT_HEAD),
  "roberta": _ROBERTA,
  "xlm-roberta": _ROBERTA,
  "camembert": _ROBERTA,
  "electra": Family("electra."),
  "distilbert": Family(
    "distilbert.",
    tensors=_DISTILBERT_TENSORS,
    config={
      "hidden_size": "dim",
      "num_hidden_layers": "n_layers",
      "num_attention_heads": "n_heads",
      "intermediate_size": "hidden_dim",
      "hidden_act": "activation",
    },
    fixed={"type_vocab_size": 0},
  ),
}


def parse(
  published: Mapping[str, Any], *, file: object = "config.json"
) -> tuple[Family, bert.BertConfig]:
  """Reads a published config.

  Args:
    published: the contents of a `config.json`.
    file: where they come from, for messages.

  Raises:
    ValueError: an unknown `model_type`, a size that is not given, or a
      variant that `bert.Bert` does not compute.

  Example:
    >>> family, config = parse(
    ...   dict(
    ...     model_type="roberta",
    ...     vocab_size=9,
    ...     hidden_size=8,
    ...     pad_token_id=1,
    ...     num_hidden_layers=1,
    ...     num_attention_heads=2,
    ...     intermediate_size=16,
    ...   )
    ... )
    >>> family.prefix, config.position_offset
    ('roberta.', 2)
  """
  kind = published.get("model_type")
  if kind not in FAMILIES:
    raise ValueError(
      f"{file}: model_type={kind!r} is not one of {sorted(FAMILIES)}"
    )
  family = FAMILIES[kind]
  positions = published.get("position_embedding_type") or "absolute"
  if positions != "absolute":
    raise ValueError(
      f"{file}: position_embedding_type={positions!r} is not 'absolute'"
    )
  values = dict(family.fixed)
  for field in dataclasses.fields(bert.BertConfig):
    key = family.config.get(field.name, field.name)
    if key in published:
      values.setdefault(field.name, published[key])
    elif field.name in _SIZES:
      raise ValueError(f"{file}: {key!r} is missing")
  if family.padded_positions:
    values["position_offset"] = published.get("pad_token_id", 1) + 1
  try:
    return family, bert.BertConfig(**values)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None
