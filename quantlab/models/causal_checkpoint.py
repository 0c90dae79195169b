"""A published language model: model, parameters and tokenizer.

Shape letters: B batch, T tokens; K input and N output of a kernel.
"""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from quantlab import hub
from quantlab.models import causal, causal_families, tokens, weights


class Checkpoint(NamedTuple):
  """A language model with everything that turns a text into logits.

  Attributes:
    model: `model.apply({"params": params}, ids)` are `[B, T, V]` logits.
    params: nested dict of jax arrays; kernels `[K, N]`.
    encode: texts of any length to `[B, T]` ids and mask.
    folder: where the files lie.
  """

  model: causal.Causal
  params: dict[str, Any]
  encode: tokens.Encode
  folder: pathlib.Path


def load(name: str | pathlib.Path, *, dtype: Any = jnp.float32) -> Checkpoint:
  """Loads a published language model: BLOOM or Llama.

  Args:
    name: a local folder or a hub id such as `"bigscience/bloom-560m"`.
    dtype: of the parameters, and so of what is computed; None keeps the
      file's.

  Raises:
    FileNotFoundError: the folder or one of its files is missing.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a file is broken, does not fit its config, or asks for what
      `causal` does not compute.
  """
  folder = hub.folder(name)
  file = folder / "config.json"
  published = hub.read_json(file)
  family, config = causal_families.parse(published, file=file)
  model = causal.Causal(config)
  return Checkpoint(
    model=model,
    encode=tokens.encoder(
      folder / "tokenizer.json",
      max_tokens=sys.maxsize,
      # Some files have -1 for none.
      pad_id=max(0, published.get("pad_token_id") or 0),
    ),
    params=weights.read(folder, family, shapes(model), dtype=dtype),
    folder=folder,
  )


def shapes(model: causal.Causal) -> dict[str, Any]:
  """The parameters as `jax.ShapeDtypeStruct`s."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
