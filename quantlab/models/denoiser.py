"""TinyDenoiser: a mask for each frame of noisy speech.

Shape letters: B batch, T frames, F bins, K units.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax

from quantlab.models import recurrent, stft

Array = jax.Array
Carry = tuple[tuple[Array, ...], ...]


class TinyDenoiser(nn.Module):
  """Dense, two recurrent layers, and two dense ones, causal.

  Its input are magnitudes of `stft.analyse`, its output is what each is
  multiplied with, in [0, 1]. The first two dense layers end in a ReLU.

  Attributes:
    cell: "lstm" or "gru".
    features: K of both recurrent layers; 256 and 128 in the paper.
    bins: F.
    by_frame: the whole network runs over one frame after the other, so that the
      activation at a site is that of one frame. It gives the same masks, with
      smaller products.

  References:
    Rusci et al., arXiv 2210.07692.

  Example:
    >>> import jax.numpy as jnp
    >>> model = TinyDenoiser("gru", 16)
    >>> x = jnp.ones((1, 3, 257))
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.apply(variables, x).shape
    (1, 3, 257)
    >>> first, carry = model.apply(variables, x[:, :1], model.start(1))
    >>> second, carry = model.apply(variables, x[:, 1:2], carry)
    >>> second.shape
    (1, 1, 257)
  """

  cell: str = "lstm"
  features: int = 256
  bins: int = stft.BINS
  by_frame: bool = False

  def setup(self):
    """Names the layers."""
    if self.cell not in recurrent.LAYERS:
      raise ValueError(
        f"cell={self.cell!r} is none of {', '.join(recurrent.LAYERS)}"
      )
    layer = recurrent.LAYERS[self.cell]
    self.dense_0 = nn.Dense(self.bins)
    self.rnn_0 = layer(self.features)
    self.rnn_1 = layer(self.features)
    self.dense_1 = nn.Dense(self.bins)
    self.dense_2 = nn.Dense(self.bins)

  def start(self, batch: int) -> Carry:
    """The carry before the first frame of B signals."""
    layer = recurrent.LAYERS[self.cell](self.features, parent=None)
    return (layer.start(batch), layer.start(batch))

  def __call__(self, magnitudes: Array, carry: Carry | None = None) -> Any:
    """Masks of whole signals, or of the frames that follow others.

    Args:
      magnitudes: `[B, T, F]`.
      carry: from `start`, or from the frames before.

    Returns:
      Masks `[B, T, F]`; with a carry a pair of them and the next carry.
    """
    first = self.start(len(magnitudes)) if carry is None else carry
    if not self.by_frame or self.is_initializing():
      last, masks = _frames(self, first, magnitudes)
    else:
      scan = recurrent.over_time(_frame)
      last, masks = scan(self, first, magnitudes)
    return masks if carry is None else (masks, last)

  def encode(self, magnitudes: Array) -> Array:
    """What the first recurrent layer reads, `[B, T, F]`."""
    return nn.relu(self.dense_0(magnitudes))

  def recur(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
    """The recurrent layers, from `[B, T, F]` to `[B, T, K]`."""
    first, second = carry
    first, x = self.rnn_0(first, x)
    second, x = self.rnn_1(second, x)
    return (first, second), x

  def decode(self, x: Array) -> Array:
    """Masks `[B, T, F]` from what the last recurrent layer says."""
    return nn.sigmoid(self.dense_2(nn.relu(self.dense_1(x))))


def _frames(
  model: TinyDenoiser, carry: Carry, magnitudes: Array
) -> tuple[Carry, Array]:
  carry, x = model.recur(carry, model.encode(magnitudes))
  return carry, model.decode(x)


def _frame(
  model: TinyDenoiser, carry: Carry, magnitudes: Array
) -> tuple[Carry, Array]:
  """The same for a single frame `[B, F]`."""
  carry, masks = _frames(model, carry, magnitudes[:, None])
  return carry, masks[:, 0]


def of_params(params: Mapping[str, Any]) -> TinyDenoiser:
  """The model that parameters, float or packed, belong to.

  Raises:
    ValueError: they are those of no TinyDenoiser; says what is missing.
  """
  try:
    shapes = [
      params["dense_0"]["kernel"].shape,
      params["rnn_0"]["step"]["recurrent"]["kernel"].shape,
      params["rnn_1"]["input"]["kernel"].shape,
      params["dense_1"]["kernel"].shape,
      params["dense_2"]["kernel"].shape,
    ]
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"no parameters of a TinyDenoiser: {error} is not there"
    ) from None
  (bins, _), (features, columns), *_ = shapes
  cells = {layer.gates: name for name, layer in recurrent.LAYERS.items()}
  cell = cells.get(columns // features, "")
  gates = columns // features * features
  expected = [
    (bins, bins),
    (features, gates),
    (features, gates),
    (features, bins),
    (bins, bins),
  ]
  if not cell or shapes != expected:
    raise ValueError(f"no TinyDenoiser has kernels of shapes {shapes}")
  return TinyDenoiser(cell, features, bins)
