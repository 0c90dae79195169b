"""A published sentence encoder: model, parameters, tokenizer and pooling.

Shape letters: B batch, T tokens, D width; K input and N output of a kernel.
"""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantlab import hub
from quantlab.models import bert, families, tokens, weights

Pool = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps `[B, T, D]` hidden states and `[B, T]` mask to `[B, D]`."""

# Both spellings of sentence-transformers, the old one and today's.
_POOLS: dict[str, Pool] = {
  "pooling_mode_mean_tokens": bert.mean_pool,
  "pooling_mode_cls_token": bert.cls_pool,
  "mean": bert.mean_pool,
  "cls": bert.cls_pool,
}
_MODULES = ("Transformer", "Pooling", "Normalize")


class Checkpoint(NamedTuple):
  """A model with everything that turns a sentence into a vector.

  Attributes:
    model: the encoder, `model.apply({"params": params}, ids, mask)`.
    params: nested dict of jax arrays; kernels `[K, N]`.
    encode: texts to `[B, T]` ids and mask; `tokens.batches` takes it.
    pool: `[B, T, D]` hidden states and `[B, T]` mask to `[B, D]` unit
      vectors: `bert.mean_pool` or `bert.cls_pool`.
    folder: where the files lie.
  """

  model: bert.Bert
  params: dict[str, Any]
  encode: tokens.Encode
  pool: Pool
  folder: pathlib.Path


def load(
  name: str | pathlib.Path = hub.MINILM,
  *,
  dtype: Any = jnp.float32,
  max_tokens: int | None = None,
) -> Checkpoint:
  """Loads a published encoder: BERT, RoBERTa, XLM-R, DistilBERT or ELECTRA.

  Args:
    name: `"minilm"`, a local folder or a hub id, as `hub.folder` takes.
    dtype: of the parameters; None keeps the file's.
    max_tokens: cuts texts shorter than the files ask for, which is the least
      of `tokenizer.json`, `sentence_bert_config.json` and the position table.

  Returns:
    The checkpoint.

  Raises:
    ModuleNotFoundError: `"minilm"` without its pip package.
    FileNotFoundError: the folder or one of its files is missing.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a file is broken, does not fit its config, or asks for what
      `bert` does not compute.

  Example:
    >>> import jax
    >>> from quantlab.models import checkpoint
    >>> c = checkpoint.load("minilm")
    >>> ids, mask = c.encode(["A sentence.", "Another one."])
    >>> hidden = jax.jit(c.model.apply)({"params": c.params}, ids, mask)
    >>> c.pool(hidden, mask).shape
    (2, 384)
  """
  folder = hub.folder(name)
  published = hub.read_json(folder / "config.json")
  family, config = families.parse(published, file=folder / "config.json")
  model = bert.Bert(config)
  limits = [config.max_tokens, max_tokens, _sentence_limit(folder)]
  return Checkpoint(
    model=model,
    # The quick checks come first: tensors are what takes time.
    pool=_pool(folder),
    encode=tokens.encoder(
      folder / "tokenizer.json",
      max_tokens=min(limit for limit in limits if limit is not None),
      pad_id=published.get("pad_token_id") or 0,
    ),
    params=weights.read(folder, family, _shapes(model), dtype=dtype),
    folder=folder,
  )


def _shapes(model: bert.Bert) -> dict[str, Any]:
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]


def _sentence_limit(folder: pathlib.Path) -> int | None:
  file = folder / "sentence_bert_config.json"
  return hub.read_json(file).get("max_seq_length") if file.is_file() else None


def _pool(folder: pathlib.Path) -> Pool:
  """Reads what sentence-transformers puts behind the encoder."""
  file = folder / "modules.json"
  for module in hub.read_json(file) if file.is_file() else []:
    kind = module.get("type", "").rpartition(".")[2]
    if kind not in _MODULES:
      raise ValueError(f"{file}: module {kind!r} is not one of {_MODULES}")
  file = folder / "1_Pooling" / "config.json"
  if not file.is_file():
    return bert.mean_pool
  config = hub.read_json(file)
  modes = [k for k, on in config.items() if "pooling_mode_" in k and on is True]
  modes = modes or [config.get("pooling_mode")]
  if len(modes) != 1 or modes[0] not in _POOLS:
    raise ValueError(f"{file}: pooling {modes} is not one of {[*_POOLS]}")
  return _POOLS[modes[0]]
