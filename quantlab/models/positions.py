"""How attention learns where tokens are, when no table of positions tells it.

Shape letters: B batch, T tokens, H heads, D width of one head.

Each has two methods, of which one does nothing: `rotate` turns queries and
keys, `bias` is added to the scores before the softmax.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary positions: each pair of channels turns at a speed of its own.

  Channel i is paired with i + D/2, as in published Llama checkpoints. Waves
  that fit into `original_tokens` less than `low_freq_factor` times turn
  `factor` times slower, those that fit more than `high_freq_factor` times as
  before, and those between in between. So 0 `original_tokens` slow all.

  Attributes:
    theta: base of the wavelengths.
    factor: how many times longer the text may be; 1 changes nothing.
    original_tokens: length of the texts before that.
    low_freq_factor: waves per `original_tokens`.
    high_freq_factor: waves per `original_tokens`; above `low_freq_factor`.

  References:
    Su et al., arXiv:2104.09864. The change of speed by wavelength is that of
    Llama 3.1, whose authors published it as code only.
  """

  theta: float = 10000.0
  factor: float = 1.0
  original_tokens: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0

  def speeds(self, width: int) -> np.ndarray:
    """Radians per token of each pair of channels, `[D / 2]` float64.

    Example:
      >>> Rope(theta=100.0).speeds(4).tolist()
      [1.0, 0.1]
      >>> Rope(theta=100.0, factor=2.0).speeds(4).tolist()
      [0.5, 0.05]
    """
    speeds = self.theta ** (-np.arange(0, width, 2) / width)
    waves = self.original_tokens * speeds / (2 * math.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    kept = np.clip((waves - low) / (high - low), 0, 1)
    return speeds * (kept + (1 - kept) / self.factor)

  def rotate(
    self, x: jax.Array, start: Any = 0, room: int | None = None
  ) -> jax.Array:
    """Turns `[B, T, H, D]` by position.

    Args:
      x: of T tokens.
      start: position of the first, an integer, traced or not.
      room: positions there are, at least `start + T`; by default T.
    """
    # Angles in float64: by the thousandth turn float32 has lost three digits.
    room = x.shape[1] if room is None else room
    angles = np.arange(room)[:, None] * self.speeds(x.shape[-1])[None]
    cos, sin = (
      jax.lax.dynamic_slice_in_dim(
        jnp.asarray(f(angles), jnp.float32), start, x.shape[1]
      )[None, :, None]
      for f in (np.cos, np.sin)
    )
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [a * cos - b * sin, b * cos + a * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)

  def bias(self, heads: int, tokens: int) -> None:
    """Adds nothing to the scores."""
    del heads, tokens


@dataclasses.dataclass(frozen=True)
class Alibi:
  """Scores that fall linearly with distance, in each head at its own slope.

  References:
    Press et al., arXiv:2108.12409; heads that are no power of two as in the
    authors' code.
  """

  def slopes(self, heads: int) -> np.ndarray:
    """Fall of the score per token, `[H]`.

    Example:
      >>> Alibi().slopes(4).tolist()
      [0.25, 0.0625, 0.015625, 0.00390625]
      >>> Alibi().slopes(6)[4:].tolist()
      [0.5, 0.125]
    """
    power = 2 ** math.floor(math.log2(heads))
    own = 2.0 ** (-8 / power * np.arange(1, power + 1))
    # Those of twice as many heads, each second one.
    more = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([own, more])

  def rotate(
    self, x: jax.Array, start: Any = 0, room: int | None = None
  ) -> jax.Array:
    """Leaves `[B, T, H, D]` as it is."""
    del start, room
    return x

  def bias(self, heads: int, tokens: int) -> jax.Array:
    """What is added to the scores of each key, `[1, H, 1, T]`."""
    # By position, not distance: a softmax does not see what all keys share.
    falls = self.slopes(heads)[:, None] * np.arange(1 - tokens, 1)[None]
    return jnp.asarray(falls, jnp.float32)[None, :, None, :]
