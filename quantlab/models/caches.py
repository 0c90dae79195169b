"""What a language model remembers of earlier tokens.

Shape letters: B batch, T tokens, S tokens that there is room for, G heads of
keys and values.
"""

from typing import Any, NamedTuple

import jax


class Past(NamedTuple):
  """Keys and values of earlier tokens in one layer, each `[B, S, G, head_dim]`.

  Attributes:
    keys: turned by their positions.
    values: as they are.
  """

  keys: jax.Array
  values: jax.Array

  def extended(self, keys: jax.Array, values: jax.Array, start: Any) -> "Past":
    """Writes `[B, T, G, head_dim]` of the tokens from `start` on."""

    def write(old, new):
      new = new.astype(old.dtype)
      return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)

    return Past(write(self.keys, keys), write(self.values, values))


class Cache(NamedTuple):
  """The past of all layers; `causal.empty_cache` makes one of no tokens.

  Attributes:
    layers: a `Past` for each.
    length: how many tokens these are, int32.
  """

  layers: tuple[Past, ...]
  length: jax.Array

  @property
  def capacity(self) -> int:
    """S."""
    return self.layers[0].keys.shape[1]
