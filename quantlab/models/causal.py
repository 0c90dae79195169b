"""Decoder-only language models in plain `flax.linen`: Llama and BLOOM.

Shape letters: B batch, T tokens, S tokens that a cache has room for, D width,
H heads, G heads of keys and values, F feed-forward, V vocabulary; K input and N
output of a kernel.

Every weight lives in flax's own `nn.Dense`, `nn.Embed` or norm, so an
interceptor sees each of them. Kernels are `[K, N]`. The tree reads:

    embeddings/embedding, embeddings_norm
    layer_0/attention/{query,key,value,out} or {query_key_value,out}
    layer_0/attention/norm/{scale,bias}
    layer_0/mlp/{gate,up,down}, layer_0/mlp/norm
    norm, head/kernel
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quantlab.models import bert, caches, positions


@dataclasses.dataclass(frozen=True)
class CausalConfig:
  """Sizes and kinds of a decoder; the defaults are a small Llama of bytes.

  Attributes:
    vocab_size: V, number of token ids.
    hidden_size: D, width of the residual stream.
    num_hidden_layers: number of layers.
    num_attention_heads: H.
    num_key_value_heads: G; divides H.
    head_dim: width of one head.
    intermediate_size: F, width inside the feed-forward block.
    position: `positions.Rope` or `positions.Alibi`.
    norm_eps: added to the variance inside each norm.
    hidden_act: a key of `bert.ACTIVATIONS`.
    rms_norm: norms without a mean; False is LayerNorm.
    gated: whether the feed-forward block has a gate.
    biased: whether dense layers have biases.
    fused: whether one kernel makes query, key and value, in this order within
      each head; takes G = H.
    embedding_norm: whether a norm follows the embeddings.
    tied: whether the embeddings are the head too.
  """

  vocab_size: int = 256
  hidden_size: int = 128
  num_hidden_layers: int = 4
  num_attention_heads: int = 4
  num_key_value_heads: int = 4
  head_dim: int = 32
  intermediate_size: int = 384
  position: positions.Rope | positions.Alibi = dataclasses.field(
    default_factory=positions.Rope
  )
  norm_eps: float = 1e-5
  hidden_act: str = "silu"
  rms_norm: bool = True
  gated: bool = True
  biased: bool = False
  fused: bool = False
  embedding_norm: bool = False
  tied: bool = False

  def __post_init__(self) -> None:
    if self.hidden_act not in bert.ACTIVATIONS:
      raise ValueError(
        f"hidden_act={self.hidden_act!r} is not one of "
        f"{sorted(bert.ACTIVATIONS)}"
      )
    if self.num_attention_heads % self.num_key_value_heads:
      raise ValueError(
        f"num_attention_heads={self.num_attention_heads} must be divisible by "
        f"num_key_value_heads={self.num_key_value_heads}"
      )
    if self.fused and self.num_attention_heads != self.num_key_value_heads:
      raise ValueError(
        f"fused takes num_key_value_heads={self.num_key_value_heads} equal to "
        f"num_attention_heads={self.num_attention_heads}"
      )


def empty_cache(
  config: CausalConfig,
  *,
  batch: int,
  capacity: int,
  dtype: Any = jnp.float32,
) -> caches.Cache:
  """A cache of no tokens.

  Args:
    config: of the model.
    batch: B.
    capacity: S.
    dtype: of keys and values.
  """
  heads = config.num_key_value_heads, config.head_dim
  zeros = jnp.zeros((batch, capacity, *heads), dtype)
  layers = (caches.Past(zeros, zeros),) * config.num_hidden_layers
  return caches.Cache(layers, jnp.zeros((), jnp.int32))


def _norm(c: CausalConfig, name: str = "norm") -> nn.Module:
  if c.rms_norm:
    return nn.RMSNorm(epsilon=c.norm_eps, name=name)
  # E[x^2] - E[x]^2 cancels on channels with outliers.
  return nn.LayerNorm(epsilon=c.norm_eps, use_fast_variance=False, name=name)


def _dense(c: CausalConfig, width: int, name: str) -> nn.Dense:
  return nn.Dense(width, use_bias=c.biased, name=name)


def _heads(c: CausalConfig, x: jax.Array) -> list[jax.Array]:
  """Returns `[B, T, H or G, head_dim]` query, key and value."""
  shape = (*x.shape[:2], -1, c.head_dim)
  if c.fused:
    width = 3 * c.num_attention_heads * c.head_dim
    fused = _dense(c, width, "query_key_value")(x)
    fused = fused.reshape(*x.shape[:2], c.num_attention_heads, 3, c.head_dim)
    return [fused[..., i, :] for i in range(3)]
  counts = {
    "query": c.num_attention_heads,
    "key": c.num_key_value_heads,
    "value": c.num_key_value_heads,
  }
  return [
    _dense(c, count * c.head_dim, name)(x).reshape(shape)
    for name, count in counts.items()
  ]


class Attention(nn.Module):
  """Causal self-attention behind a norm, with its residual."""

  config: CausalConfig

  @nn.compact
  def __call__(
    self, x: jax.Array, past: caches.Past | None = None, start: Any = 0
  ) -> Any:
    """Maps `[B, T, D]` to `[B, T, D]`.

    Args:
      x: of the tokens from `start` on.
      past: of earlier tokens, if there may be any.
      start: how many these are.

    Returns:
      What x becomes; if there is a past, a pair of that and the longer past.
    """
    c = self.config
    # Not all backends multiply float16 matrices into float32.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    heads = _heads(c, _norm(c)(x))
    query, key, value = (each.astype(wide) for each in heads)
    tokens = x.shape[1]
    room = tokens if past is None else past.keys.shape[1]
    query = c.position.rotate(query, start, room)
    now = caches.Past(c.position.rotate(key, start, room), value)
    if past is not None:
      now = past.extended(*now, start)
    reach = start + jnp.arange(tokens)[:, None]
    mixed = jax.nn.dot_product_attention(
      query,
      now.keys.astype(wide),
      now.values.astype(wide),
      bias=c.position.bias(c.num_attention_heads, room),
      mask=(jnp.arange(room)[None] <= reach)[None, None],
    )
    out = _dense(c, c.hidden_size, "out")
    mixed = mixed.astype(x.dtype)
    x = x + out(mixed.reshape(*x.shape[:2], -1))
    return x if past is None else (x, now)


class Mlp(nn.Module):
  """Feed-forward block behind a norm, with its residual."""

  config: CausalConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, D]` to `[B, T, D]`."""
    c = self.config
    y = _norm(c)(x)
    act = bert.ACTIVATIONS[c.hidden_act]
    up = _dense(c, c.intermediate_size, "up")(y)
    if c.gated:
      up = act(_dense(c, c.intermediate_size, "gate")(y)) * up
    else:
      up = act(up)
    return x + _dense(c, c.hidden_size, "down")(up)


class Layer(nn.Module):
  """Attention, then feed-forward."""

  config: CausalConfig

  @nn.compact
  def __call__(
    self, x: jax.Array, past: caches.Past | None = None, start: Any = 0
  ) -> Any:
    """As `Attention`."""
    attention = Attention(self.config, name="attention")
    mlp = Mlp(self.config, name="mlp")
    if past is None:
      return mlp(attention(x))
    x, past = attention(x, past, start)
    return mlp(x), past


class Causal(nn.Module):
  """The language model: token ids in, logits of the next token out.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from quantlab.models import causal
    >>> model = causal.Causal(causal.CausalConfig(num_hidden_layers=1))
    >>> ids = jnp.array([list(b"To be, or")])
    >>> variables = jax.jit(model.init)(jax.random.key(0), ids)
    >>> jax.jit(model.apply)(variables, ids).shape
    (1, 9, 256)

  References:
    Touvron et al., arXiv:2302.13971; Scao et al., arXiv:2211.05100.
  """

  config: CausalConfig

  @nn.compact
  def __call__(self, ids: jax.Array, cache: caches.Cache | None = None) -> Any:
    """Maps `[B, T]` int32 ids to `[B, T, V]` logits.

    Padding on the right needs no mask: no token sees those after it.

    Args:
      ids: of whole texts, or of what follows the tokens of a cache.
      cache: of these.

    Returns:
      The logits; with a cache a pair of them and the longer cache. Logits are
      NaN where the cache has no room for all tokens.
    """
    c = self.config
    embeddings = nn.Embed(c.vocab_size, c.hidden_size, name="embeddings")
    x = embeddings(ids)
    if c.embedding_norm:
      x = _norm(c, "embeddings_norm")(x)
    layers = []
    for i in range(c.num_hidden_layers):
      layer = Layer(c, name=f"layer_{i}")
      if cache is None:
        x = layer(x)
      else:
        x, past = layer(x, cache.layers[i], cache.length)
        layers.append(past)
    x = _norm(c)(x)
    if c.tied:
      logits = embeddings.attend(x)
    else:
      logits = nn.Dense(c.vocab_size, use_bias=False, name="head")(x)
    if cache is None:
      return logits
    length = cache.length + ids.shape[1]
    # Out of range, writes move to where there is room.
    logits = jnp.where(length <= cache.capacity, logits, jnp.nan)
    return logits, caches.Cache(tuple(layers), length)
