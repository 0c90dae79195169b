"""What tells published language models apart: keys of config and tensors."""

from collections.abc import Mapping
from typing import Any

from quantlab.models import causal, families, positions

_LLAMA = families.Family(
  "model.",
  tensors={
    "embeddings": "embed_tokens",
    "layer/attention/norm": "layers.{}.input_layernorm",
    "layer/attention/query": "layers.{}.self_attn.q_proj",
    "layer/attention/key": "layers.{}.self_attn.k_proj",
    "layer/attention/value": "layers.{}.self_attn.v_proj",
    "layer/attention/out": "layers.{}.self_attn.o_proj",
    "layer/mlp/norm": "layers.{}.post_attention_layernorm",
    "layer/mlp/gate": "layers.{}.mlp.gate_proj",
    "layer/mlp/up": "layers.{}.mlp.up_proj",
    "layer/mlp/down": "layers.{}.mlp.down_proj",
    "norm": "norm",
    "head": "lm_head",
  },
)
_BLOOM = families.Family(
  "transformer.",
  tensors={
    "embeddings": "word_embeddings",
    "embeddings_norm": "word_embeddings_layernorm",
    "layer/attention/norm": "h.{}.input_layernorm",
    "layer/attention/query_key_value": "h.{}.self_attention.query_key_value",
    "layer/attention/out": "h.{}.self_attention.dense",
    "layer/mlp/norm": "h.{}.post_attention_layernorm",
    "layer/mlp/up": "h.{}.mlp.dense_h_to_4h",
    "layer/mlp/down": "h.{}.mlp.dense_4h_to_h",
    "norm": "ln_f",
    "head": "lm_head",
  },
)


def parse(
  published: Mapping[str, Any], *, file: object = "config.json"
) -> tuple[families.Family, causal.CausalConfig]:
  """Reads a published config.

  Args:
    published: the contents of a `config.json`.
    file: where they come from, for messages.

  Raises:
    ValueError: an unknown `model_type`, a size that is not given, or a
      variant that `causal.Causal` does not compute.

  Example:
    >>> published = dict(
    ...   model_type="bloom",
    ...   vocab_size=250880,
    ...   n_embed=1024,
    ...   n_layer=24,
    ...   num_attention_heads=16,
    ... )
    >>> _, config = parse(published)
    >>> config.intermediate_size, config.head_dim, config.tied
    (4096, 64, True)
  """
  kinds = {"bloom": (_BLOOM, _bloom), "llama": (_LLAMA, _llama)}
  kind = published.get("model_type")
  if kind not in kinds:
    raise ValueError(f"{file}: model_type={kind!r} is not one of {[*kinds]}")
  family, read = kinds[kind]
  try:
    return family, read(published)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None


def _llama(published: Mapping[str, Any]) -> causal.CausalConfig:
  _refuse(published, "attention_bias", "mlp_bias")
  width = _entry(published, "hidden_size")
  heads = _entry(published, "num_attention_heads")
  return causal.CausalConfig(
    vocab_size=_entry(published, "vocab_size"),
    hidden_size=width,
    num_hidden_layers=_entry(published, "num_hidden_layers"),
    num_attention_heads=heads,
    # Both came after the first Llama.
    num_key_value_heads=published.get("num_key_value_heads") or heads,
    head_dim=published.get("head_dim") or width // heads,
    intermediate_size=_entry(published, "intermediate_size"),
    position=_rope(published),
    norm_eps=published.get("rms_norm_eps", 1e-6),
    hidden_act=published.get("hidden_act", "silu"),
    tied=published.get("tie_word_embeddings", False),
  )


def _bloom(published: Mapping[str, Any]) -> causal.CausalConfig:
  _refuse(published, "apply_residual_connection_post_layernorm")
  width = _entry(published, "n_embed", "hidden_size")
  heads = _entry(published, "n_head", "num_attention_heads")
  return causal.CausalConfig(
    vocab_size=_entry(published, "vocab_size"),
    hidden_size=width,
    num_hidden_layers=_entry(published, "n_layer", "num_hidden_layers"),
    num_attention_heads=heads,
    num_key_value_heads=heads,
    head_dim=width // heads,
    intermediate_size=4 * width,
    position=positions.Alibi(),
    norm_eps=published.get("layer_norm_epsilon", 1e-5),
    hidden_act="gelu_pytorch_tanh",
    rms_norm=False,
    gated=False,
    biased=True,
    fused=True,
    embedding_norm=True,
    tied=published.get("tie_word_embeddings", True),
  )


def _rope(published: Mapping[str, Any]) -> positions.Rope:
  """Reads the one entry of today's files, or the two of older ones."""
  entries: Mapping[str, Any] = (
    published.get("rope_parameters") or published.get("rope_scaling") or {}
  )
  theta = entries.get("rope_theta") or published.get("rope_theta") or 10000.0
  kind = entries.get("rope_type") or entries.get("type") or "default"
  if kind == "default":
    return positions.Rope(theta)
  if kind == "linear":
    return positions.Rope(theta, _entry(entries, "factor"))
  if kind == "llama3":
    return positions.Rope(
      theta,
      _entry(entries, "factor"),
      _entry(entries, "original_max_position_embeddings"),
      _entry(entries, "low_freq_factor"),
      _entry(entries, "high_freq_factor"),
    )
  raise ValueError(
    f"rope_type={kind!r} is not one of ['default', 'linear', 'llama3']"
  )


def _entry(published: Mapping[str, Any], *names: str) -> Any:
  """Returns the entry that goes by one of the names."""
  for name in names:
    if published.get(name) is not None:
      return published[name]
  raise ValueError(f"{names[0]!r} is missing")


def _refuse(published: Mapping[str, Any], *names: str) -> None:
  for name in names:
    if published.get(name):
      raise ValueError(f"{name}={published[name]!r} is not computed")
