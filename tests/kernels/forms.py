"""Weights in kernel form with random codes and tables, and what to expect."""

import jax.numpy as jnp
import numpy as np

from quantlab.core import base, grids, qtensor, stored

KINDS = ("affine", "codebook", "tails", "icquant", "two_tables", "clusters")
LABEL_BITS = {"icquant": 1, "two_tables": 1, "clusters": 2}


def matrix(kind, bits, size, *, cells=1, seed=0):
  """`[K, N]` in kernel form, with G grid cells along K."""
  rng = np.random.default_rng(seed)

  def packed(bits):
    codes = rng.integers(0, 2**bits, size).astype(np.uint8)
    return stored.Packed.pack(jnp.asarray(codes), bits, 0, (-2,))

  def table(*shape, low=0.5, high=1.5):
    shape = (cells, size[1], *shape)
    return jnp.asarray(rng.uniform(low, high, shape), jnp.float32)

  def affine(bits=bits):
    spec = base.IntSpec(bits, signed=False)
    return grids.Affine(table(), table(low=0, high=2**bits), spec)

  def codebook():
    return grids.Codebook(jnp.sort(table(2**bits, low=-1, high=1), axis=-1))

  def tails():
    spec = base.IntSpec(bits, signed=False)
    return grids.Tails(affine(bits - 1), affine(bits - 1), spec)

  make = {
    "affine": affine,
    "codebook": codebook,
    "tails": tails,
    "icquant": lambda: (affine(), tails()),
    "two_tables": lambda: (codebook(), codebook()),
    "clusters": lambda: (affine(), affine(), affine()),
  }
  codes, grid = packed(bits), make[kind]()
  if isinstance(grid, tuple):
    labels = packed(LABEL_BITS[kind])
    if kind == "clusters":
      plane = jnp.minimum(labels.unpack(), 2)
      labels = stored.Packed.pack(plane, 2, 0, (-2,))
    grid = grids.Labelled(labels, grid)
  return qtensor.QTensor(codes, grid, jnp.float32)


def error(y, x, w):
  """The largest error of a product, in units of `|x| @ |w|`."""
  w = np.asarray(w.dequantize(), np.float64)
  x = np.asarray(x, np.float64)
  most = np.abs(x) @ np.abs(w)
  return float(np.max(np.abs(np.asarray(y, np.float64) - x @ w) / most))
