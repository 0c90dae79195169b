"""BERT-family text encoders in plain `flax.linen`.

Shape letters: B batch, T tokens, D width, H heads, F feed-forward,
V vocabulary.

Every weight lives in flax's own `nn.Dense`, `nn.Embed` or `nn.LayerNorm`, so
an interceptor sees each of them. Kernels are `[in, out]`. The tree reads:

    embeddings/{word,position,token_type}/embedding, embeddings/norm
    layer_0/attention/{query,key,value,out}/{kernel,bias}
    layer_0/attention/norm/{scale,bias}
    layer_0/mlp/{up,down}/{kernel,bias}, layer_0/mlp/norm
"""

from collections.abc import Callable
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": jax.nn.gelu,
  "gelu_pytorch_tanh": jax.nn.gelu,
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes of an encoder, under the names of the published `config.json`.

  Attributes:
    vocab_size: V, number of token ids.
    hidden_size: D, width of the residual stream.
    num_hidden_layers: number of layers.
    num_attention_heads: H; divides `hidden_size`.
    intermediate_size: F, width inside the feed-forward block.
    max_position_embeddings: rows of the position table.
    type_vocab_size: rows of the token-type table; 0 leaves it out.
    embedding_size: width of the tables; a dense layer maps it to
      `hidden_size` where they differ. None means `hidden_size`.
    layer_norm_eps: added to the variance inside each LayerNorm.
    hidden_act: a key of `ACTIVATIONS`.
    position_offset: row of the position table that the first token reads:
      0, or `pad_token_id + 1` in the RoBERTa family.
  """

  vocab_size: int = 30522
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  embedding_size: int | None = None
  layer_norm_eps: float = 1e-12
  hidden_act: str = "gelu"
  position_offset: int = 0

  def __post_init__(self) -> None:
    if self.hidden_act not in ACTIVATIONS:
      raise ValueError(
        f"hidden_act={self.hidden_act!r} is not one of {sorted(ACTIVATIONS)}"
      )
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(
        f"hidden_size={self.hidden_size} must be divisible by "
        f"num_attention_heads={self.num_attention_heads}"
      )

  @property
  def max_tokens(self) -> int:
    """The longest sequence that the position table serves."""
    return self.max_position_embeddings - self.position_offset


def _norm(config: BertConfig) -> nn.LayerNorm:
  # E[x^2] - E[x]^2 cancels on the outlier channels that BERT is known for.
  return nn.LayerNorm(
    epsilon=config.layer_norm_eps, use_fast_variance=False, name="norm"
  )


class Embeddings(nn.Module):
  """Word, position and token-type tables, summed and normalised."""

  config: BertConfig

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    """Maps `[B, T]` token ids to `[B, T, D]`."""
    c = self.config
    width = c.embedding_size or c.hidden_size
    positions = c.position_offset + jnp.arange(ids.shape[1])
    x = nn.Embed(c.vocab_size, width, name="word")(ids)
    table = nn.Embed(c.max_position_embeddings, width, name="position")
    x = x + table(positions[None])
    if c.type_vocab_size:
      # One segment only: every token has type 0.
      table = nn.Embed(c.type_vocab_size, width, name="token_type")
      x = x + table(jnp.zeros((1, 1), jnp.int32))
    x = _norm(c)(x)
    if width != c.hidden_size:
      x = nn.Dense(c.hidden_size, name="project")(x)
    return x


class Attention(nn.Module):
  """Multi-head self-attention with its residual and LayerNorm."""

  config: BertConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps `[B, T, D]` with a `[B, T]` bool mask to `[B, T, D]`."""
    c = self.config
    heads = (*x.shape[:2], c.num_attention_heads, -1)
    query, key, value = (
      nn.Dense(c.hidden_size, name=name)(x).reshape(heads)
      for name in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(
      query, key, value, mask=mask[:, None, None, :]
    )
    out = nn.Dense(c.hidden_size, name="out")(mixed.reshape(x.shape))
    return _norm(c)(x + out)


class Mlp(nn.Module):
  """Feed-forward block with its residual and LayerNorm."""

  config: BertConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, D]` to `[B, T, D]`."""
    c = self.config
    up = nn.Dense(c.intermediate_size, name="up")(x)
    up = ACTIVATIONS[c.hidden_act](up)
    return _norm(c)(x + nn.Dense(c.hidden_size, name="down")(up))


class Layer(nn.Module):
  """Attention, then feed-forward."""

  config: BertConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps `[B, T, D]` with a `[B, T]` bool mask to `[B, T, D]`."""
    x = Attention(self.config, name="attention")(x, mask)
    return Mlp(self.config, name="mlp")(x)


class Bert(nn.Module):
  """The encoder: token ids in, last hidden states out.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from quantlab.models import bert
    >>> model = bert.Bert(
    ...   bert.BertConfig(
    ...     vocab_size=9,
    ...     hidden_size=8,
    ...     num_hidden_layers=1,
    ...     num_attention_heads=2,
    ...     intermediate_size=16,
    ...   )
    ... )
    >>> ids, mask = jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 0]])
    >>> variables = jax.jit(model.init)(jax.random.key(0), ids, mask)
    >>> hidden = jax.jit(model.apply)(variables, ids, mask)
    >>> hidden.shape, bert.mean_pool(hidden, mask).shape
    ((1, 3, 8), (1, 8))

  References:
    Devlin et al., arXiv:1810.04805.
  """

  config: BertConfig

  @nn.compact
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Encodes right-padded token ids.

    Args:
      ids: `[B, T]` int32 token ids.
      mask: `[B, T]` bool or 0/1, true at real tokens.

    Returns:
      `[B, T, D]` hidden states; those at padding mean nothing.

    Raises:
      ValueError: T exceeds the position table.
    """
    if ids.shape[1] > self.config.max_tokens:
      # A gather out of range would not fail by itself.
      raise ValueError(
        f"{ids.shape[1]} tokens exceed {self.config.max_tokens=}"
      )
    x = Embeddings(self.config, name="embeddings")(ids)
    for i in range(self.config.num_hidden_layers):
      x = Layer(self.config, name=f"layer_{i}")(x, mask.astype(bool))
    return x


def mean_pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """Averages the real tokens and scales the result to length 1.

  Args:
    hidden: `[B, T, D]` float.
    mask: `[B, T]` bool or 0/1, true at real tokens.

  Returns:
    `[B, D]` unit vectors; zeros where a row has no real token.

  Example:
    >>> import jax.numpy as jnp
    >>> hidden = jnp.array([[[3.0, 4.0], [9.0, 9.0]]])
    >>> mean_pool(hidden, jnp.array([[1, 0]])).round(1).tolist()
    [[0.6000000238418579, 0.800000011920929]]
  """
  # The divisor of a mean drops out of the unit vector.
  keep = mask.astype(bool)[..., None]
  return _unit(jnp.where(keep, hidden.astype(jnp.float32), 0).sum(axis=1))


def cls_pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
  """Takes the first token and scales it to length 1; as `mean_pool`."""
  first = hidden[:, 0].astype(jnp.float32)
  return _unit(jnp.where(mask.astype(bool)[:, :1], first, 0))


def _unit(x: jax.Array) -> jax.Array:
  # Not `linalg.norm`: its gradient is NaN at an all-padding row.
  square = (x * x).sum(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, jnp.finfo(x.dtype).tiny))
