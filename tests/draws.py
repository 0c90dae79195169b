"""Random arrays. jax would compile a program for every shape of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Shape = tuple[int, ...]


def normal(shape: Shape, seed: int | Sequence[int] = 0) -> Array:
  """Standard normal values, float32."""
  draws = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(draws, jnp.float32)


def student_t(shape: Shape, freedom: float, seed: int = 0) -> Array:
  """Values with heavy tails, float32."""
  draws = np.random.default_rng(seed).standard_t(freedom, shape)
  return jnp.asarray(draws, jnp.float32)


def integers(shape: Shape, lo: int, hi: int, seed: int = 0) -> Array:
  """Integers in `[lo, hi)`, int32."""
  draws = np.random.default_rng(seed).integers(lo, hi, shape)
  return jnp.asarray(draws, jnp.int32)


def like(tree: Any, scale: float = 1.0, seed: int = 0) -> Any:
  """A tree of normal values, of the same shapes."""
  leaves, structure = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  draws = [scale * rng.standard_normal(leaf.shape) for leaf in leaves]
  return jax.tree.unflatten(
    structure, [jnp.asarray(x, jnp.float32) for x in draws]
  )
