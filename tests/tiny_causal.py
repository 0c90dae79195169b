"""Random language models of bytes in the published formats, a few kB each."""

import json

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import decoders, pre_tokenizers, processors

D, F, H, G, LAYERS = 24, 20, 6, 3, 2
V = 257  # Bytes, and the token that begins a text.
ROPE = {
  "rope_type": "llama3",
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}
_LLAMA = {
  "model_type": "llama",
  "architectures": ["LlamaForCausalLM"],
  "vocab_size": V,
  "hidden_size": D,
  "intermediate_size": F,
  "num_hidden_layers": LAYERS,
  "num_attention_heads": H,
  "rms_norm_eps": 1e-5,
  "hidden_act": "silu",
}
CONFIGS = {
  "bloom": {
    "model_type": "bloom",
    "architectures": ["BloomForCausalLM"],
    "vocab_size": V,
    "n_embed": D,
    "n_layer": LAYERS,
    "num_attention_heads": H,
    "layer_norm_epsilon": 1e-5,
  },
  # As the first Llama was published.
  "llama": _LLAMA | {"tie_word_embeddings": False, "pad_token_id": -1},
  # As Llama 3.2 was.
  "llama3": _LLAMA
  | {
    "num_key_value_heads": G,
    "head_dim": 8,
    "rope_theta": 100.0,
    "rope_scaling": ROPE,
    "tie_word_embeddings": True,
  },
}


def shapes(config):
  """Names and torch's shapes of a config's tensors."""
  if config["model_type"] == "bloom":
    norms = ["word_embeddings_layernorm", "ln_f"]
    layers = {
      "self_attention.query_key_value": (3 * D, D),
      "self_attention.dense": (D, D),
      "mlp.dense_h_to_4h": (4 * D, D),
      "mlp.dense_4h_to_h": (D, 4 * D),
      "input_layernorm": (D,),
      "post_attention_layernorm": (D,),
    }
    dense = {f"h.{i}.{k}": v for i in range(LAYERS) for k, v in layers.items()}
    dense |= dict.fromkeys(norms, (D,))
    found = {f"{name}.weight": shape for name, shape in dense.items()}
    found |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    return found | {"word_embeddings.weight": (V, D)}
  width, inner = config.get("head_dim", D // H), config["intermediate_size"]
  shared = config.get("num_key_value_heads", H) * width
  layers = {
    "self_attn.q_proj": (H * width, D),
    "self_attn.k_proj": (shared, D),
    "self_attn.v_proj": (shared, D),
    "self_attn.o_proj": (D, H * width),
    "mlp.gate_proj": (inner, D),
    "mlp.up_proj": (inner, D),
    "mlp.down_proj": (D, inner),
    "input_layernorm": (D,),
    "post_attention_layernorm": (D,),
  }
  found = {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(LAYERS)
    for name, shape in layers.items()
  }
  found |= {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
  if not config["tie_word_embeddings"]:
    found["lm_head.weight"] = (V, D)
  return found


def tensors(config):
  """Tensors in torch's layout, made of a chirp."""
  return {
    key: _chirp(i, shape) + (len(shape) == 1 and key.endswith("weight"))
    for i, (key, shape) in enumerate(sorted(shapes(config).items()))
  }


def _chirp(i, shape):
  # No generator of random numbers promises the same stream for ever.
  k = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
  return (0.5 * np.sin(0.37 * k * k + i)).astype(np.float32)


def write(folder, config):
  """Writes a Hugging Face folder; returns it."""
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(tensors(config), folder / "model.safetensors")
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  ids = {"<s>": 256} | {c: i for i, c in enumerate(alphabet)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  if config["model_type"] == "llama":
    tokenizer.post_processor = processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", 256)]
    )
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder
