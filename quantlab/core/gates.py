"""Gates: variables whose value is a number of bits.

A gate is learned, but by no gradient: its staircase is flat. What arrives as
the "gradient" of its other two arrays is how much the tensor matters, and an
optimizer of gates moves the value by that; see `methods.cgmq`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base

Array = jax.Array
PyTree = Any

WIDTHS = (2, 4, 8, 16, 32)
"""Bits of the steps of the staircase, in CGMQ and in Bayesian Bits."""

LEAST = 0.5
"""The value that gates are kept above: on the first step, not pruned."""


@base.pytree
class Gate:
  """Chooses among widths: `widths[i]` bits where `i < value <= i + 1`.

  Attributes:
    value: one for the tensor, or one for each element.
    slope: 0; the gradient of it is the mean of `|dL/dx|`.
    size: 0; the gradient of it is the mean of `|x|`.
    widths: bits, ascending.
  """

  value: Array
  slope: Array
  size: Array
  widths: tuple[int, ...] = base.static()

  @classmethod
  def open(cls, shape: tuple[int, ...], widths: tuple[int, ...]) -> "Gate":
    """A gate of the largest width."""
    zero = jnp.zeros(shape, jnp.float32)
    return cls(jnp.full(shape, len(widths) + LEAST), zero, zero, widths)

  @property
  def place(self) -> Array:
    """0 where it is pruned, else the number of the width, from 1 on."""
    return jnp.clip(jnp.ceil(self.value), 0, len(self.widths)).astype(jnp.int32)

  @property
  def bits(self) -> Array:
    """Bits, 0 where it is pruned.

    Example:
      >>> gate = Gate(jnp.array([0, 0.5, 1, 1.001, 4.001]), 0, 0, WIDTHS)
      >>> gate.bits.tolist()
      [0, 2, 2, 4, 32]
    """
    return jnp.array((0, *self.widths))[self.place]

  def at(self, bits: int) -> "Gate":
    """The gate in the middle of the step of a width.

    Raises:
      ValueError: there is no such step.
    """
    if bits not in self.widths:
      raise ValueError(f"{bits=} is none of the widths {self.widths}")
    value = jnp.full_like(self.value, self.widths.index(bits) + LEAST)
    return Gate(value, self.slope, self.size, self.widths)


def is_gate(x: Any) -> bool:
  """Whether `x` is one leaf of a tree of gates."""
  return isinstance(x, Gate)


def gates(tree: PyTree) -> list[Gate]:
  """The gates of a tree, such as what a plan has learned of one tensor."""
  return [x for x in jax.tree.leaves(tree, is_leaf=is_gate) if is_gate(x)]
