"""How well a language model predicts: surprise, perplexity, choices.

Shape letters: B batch, R texts, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from quantlab.models import tokens


def nats(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """Surprise at each token but the first: minus the log of its probability.

  Args:
    logits: `[B, T, V]`; those at a token are about the next one.
    ids: `[B, T]` int32 token ids.

  Returns:
    `[B, T - 1]` float32.

  Example:
    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [1.0, 0.0]]]))
    >>> (nats(logits, jnp.array([[0, 1]])) / jnp.log(2)).tolist()
    [[1.0]]
  """
  logits = logits[:, :-1].astype(jnp.float32)
  picked = jnp.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - picked


def perplexity(surprise: npt.ArrayLike) -> float:
  """The exponential of the mean surprise, of so many equally likely tokens.

  Args:
    surprise: in nats, of any shape, as `nats` returns.

  Example:
    >>> perplexity([[0.0, np.log(4.0)]])
    2.0
  """
  return float(np.exp(np.mean(np.asarray(surprise, np.float64))))


def tails(
  encode: tokens.Encode, stems: Sequence[str], texts: Sequence[str]
) -> np.ndarray:
  """Marks, in what `nats` returns for texts, the part behind their stems.

  Args:
    encode: an `Encode`.
    stems: R beginnings, one for each text.
    texts: R texts.

  Returns:
    `[R, T - 1]` bool, where `[R, T]` are the encoded texts.

  Example:
    >>> def encode(texts):
    ...   mask = np.arange(4) < np.array([[len(t)] for t in texts])
    ...   return mask.astype(np.int32), mask
    >>> tails(encode, ["ab", "ab"], ["abc", "abcd"]).astype(int).tolist()
    [[0, 1, 0], [0, 1, 1]]
  """
  _, heads = encode(stems)
  _, mask = encode(texts)
  starts = heads.sum(axis=1, keepdims=True)
  return mask[:, 1:] & (np.arange(1, mask.shape[1])[None] >= starts)
