"""Published text classifiers: BERT with a pooler and a head.

Shape letters: B batch, T tokens, D width, C classes.
"""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantlab import hub
from quantlab.models import bert, families, tokens, weights


class Classifier(bert.Bert):
  """The encoder, then the logits of C classes from its first token.

  The tree is that of `bert.Bert` with `{pooler,classifier}/{kernel,bias}`
  beside it.

  Attributes:
    classes: C.

  Example:
    >>> config = bert.BertConfig(
    ...   vocab_size=9,
    ...   hidden_size=8,
    ...   num_hidden_layers=1,
    ...   num_attention_heads=2,
    ...   intermediate_size=16,
    ... )
    >>> model = Classifier(config, classes=6)
    >>> ids, mask = jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 0]])
    >>> variables = jax.jit(model.init)(jax.random.key(0), ids, mask)
    >>> jax.jit(model.apply)(variables, ids, mask).shape
    (1, 6)

  References:
    Devlin et al., arXiv:1810.04805, figure 4.
  """

  classes: int

  @nn.compact
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps `[B, T]` ids and mask, as `bert.Bert` takes them, to `[B, C]`."""
    first = super().__call__(ids, mask)[:, 0]
    pooled = jnp.tanh(nn.Dense(self.config.hidden_size, name="pooler")(first))
    return nn.Dense(self.classes, name="classifier")(pooled)


class Checkpoint(NamedTuple):
  """A classifier with everything that turns a text into logits.

  Attributes:
    model: `model.apply({"params": params}, ids, mask)` are `[B, C]` logits.
    params: nested dict of jax arrays; kernels `[K, N]`.
    encode: texts to `[B, T]` ids and mask; `tokens.batches` takes it.
    labels: the name of each class, `"LABEL_0"` and so on where the files give
      none.
    folder: where the files lie.
  """

  model: Classifier
  params: dict[str, Any]
  encode: tokens.Encode
  labels: tuple[str, ...]
  folder: pathlib.Path


def load(
  name: str | pathlib.Path,
  *,
  dtype: Any = jnp.float32,
  max_tokens: int | None = None,
) -> Checkpoint:
  """Loads a published `BertForSequenceClassification`.

  Args:
    name: a local folder or a hub id such as
      `"gokuls/BERT-tiny-emotion-intent"`.
    dtype: of the parameters; None keeps the file's.
    max_tokens: cuts texts shorter than the tokenizer and the position table.

  Raises:
    FileNotFoundError: the folder or one of its files is missing.
    ConnectionError: a hub id that neither the hub nor its cache gives.
    ValueError: a file is broken or does not fit its config, or the head is not
      BERT's.
  """
  folder = hub.folder(name)
  file = folder / "config.json"
  published = hub.read_json(file)
  family, model, labels = parse(published, file=file)
  limit = model.config.max_tokens
  return Checkpoint(
    model=model,
    encode=tokens.encoder(
      _tokenizer(folder),
      max_tokens=limit if max_tokens is None else min(limit, max_tokens),
      pad_id=published.get("pad_token_id") or 0,
    ),
    params=weights.read(folder, family, shapes(model), dtype=dtype),
    labels=labels,
    folder=folder,
  )


def parse(
  published: Mapping[str, Any], *, file: object = "config.json"
) -> tuple[families.Family, Classifier, tuple[str, ...]]:
  """Reads a published config: how to read weights, the model and its classes.

  Args:
    published: the contents of a `config.json`.
    file: where they come from, for messages.

  Raises:
    ValueError: not a BERT, or a variant that `bert.Bert` does not compute.

  Example:
    >>> _, model, labels = parse(
    ...   dict(
    ...     model_type="bert",
    ...     vocab_size=9,
    ...     hidden_size=8,
    ...     num_hidden_layers=1,
    ...     num_attention_heads=2,
    ...     intermediate_size=16,
    ...     id2label={"0": "ham", "1": "spam"},
    ...   )
    ... )
    >>> model.classes, labels
    (2, ('ham', 'spam'))
  """
  if published.get("model_type") != "bert":
    raise ValueError(
      f"{file}: model_type={published.get('model_type')!r} is not 'bert', the "
      "one whose classification head is computed"
    )
  family, config = families.parse(published, file=file)
  # Two classes are what a file need not tell.
  names = published.get("id2label") or ["LABEL_0", "LABEL_1"]
  if isinstance(names, Mapping):
    names = [names[key] for key in sorted(names, key=int)]
  labels = tuple(map(str, names))
  return family, Classifier(config, len(labels)), labels


def shapes(model: Classifier) -> dict[str, Any]:
  """The parameters as `jax.ShapeDtypeStruct`s."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]


def _tokenizer(folder: pathlib.Path) -> pathlib.Path:
  """What old checkpoints have in place of a `tokenizer.json`."""
  file = folder / "tokenizer.json"
  words = folder / "vocab.txt"
  return words if words.is_file() and not file.is_file() else file
