"""Texts from language models, token by token.

Shape letters: B batch, T tokens of a prompt, N tokens made, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from quantlab.models import caches

Step = Callable[[jax.Array, caches.Cache], tuple[jax.Array, caches.Cache]]
"""`step(ids, cache) -> (logits, cache)`: ids `[B, T]` to logits `[B, T, V]`."""


def generate(
  step: Step,
  cache: caches.Cache,
  prompt: jax.Array,
  count: int,
  *,
  temperature: float = 0.0,
  key: jax.Array | None = None,
) -> tuple[jax.Array, caches.Cache]:
  """Continues prompts.

  Args:
    step: a model with its weights, in any form.
    cache: of the tokens before the prompts; `causal.empty_cache` has none.
    prompt: `[B, T]` int32 ids.
    count: N, at least 1.
    temperature: 0 takes the likeliest token; above 0 tokens are drawn from the
      softmax of the logits divided by it.
    key: for drawing.

  Returns:
    `[B, N]` int32 ids, and the cache of all tokens but the last.

  Raises:
    ValueError: the cache is too short, or drawing has no key.

  Example:
    >>> import functools
    >>> from quantlab.models import causal
    >>> config = causal.CausalConfig(num_hidden_layers=1)
    >>> model = causal.Causal(config)
    >>> prompt = jnp.array([list(b"To be, or")])
    >>> variables = jax.jit(model.init)(jax.random.key(0), prompt)
    >>> cache = causal.empty_cache(config, batch=1, capacity=16)
    >>> step = functools.partial(model.apply, variables)
    >>> ids, cache = generate(step, cache, prompt, 4)
    >>> ids.shape, int(cache.length)
    ((1, 4), 12)
  """
  if count < 1:
    raise ValueError(f"{count=} must be at least 1")
  if temperature < 0:
    raise ValueError(f"{temperature=} must be at least 0")
  if temperature and key is None:
    raise ValueError(f"drawing tokens at {temperature=} takes a key")
  length = prompt.shape[1]
  if length + count - 1 > cache.capacity:
    raise ValueError(
      f"a cache for {cache.capacity} tokens is too short for a prompt of "
      f"{length} and {count=}"
    )

  def pick(logits, key):
    if not temperature:
      return jnp.argmax(logits, axis=-1).astype(prompt.dtype), key
    key, now = jax.random.split(key)
    drawn = jax.random.categorical(now, logits / temperature)
    return drawn.astype(prompt.dtype), key

  def body(carry, _):
    token, cache, key = carry
    logits, cache = step(token[:, None], cache)
    token, key = pick(logits[:, -1], key)
    return (token, cache, key), token

  logits, cache = step(prompt, cache)
  first, key = pick(logits[:, -1], key)
  carry, rest = jax.lax.scan(body, (first, cache, key), length=count - 1)
  return jnp.concatenate([first[None], rest]).T, carry[1]
