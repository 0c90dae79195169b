"""What the methods do to Gaussian weights, beside what theory says.

Every number here has a closed form or an asymptotic value; the tests hold the
methods to them.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import quantlab as ql
from quantlab.core import gaps

Array = jax.Array
Row = tuple[Any, ...]

DIM = 4096
"""Elements of a row: the width of many language models."""


def errors(rows: int = 128) -> Iterator[Row]:
  """Bits, and the mean squared error over the variance of each method.

  Args:
    rows: i.i.d. rows of `DIM` elements, unit variance.

  Yields:
    `(bits, rtn, icquant(rtn), lloyd, icquant(lloyd), easyquant)`; the last
    counts its exact outliers as errors of 0.
  """
  w = jax.random.normal(jax.random.key(0), (DIM, rows))
  for n in (2, 3, 4):
    methods = (
      ql.rtn(n),
      ql.icquant(ql.rtn(n)),
      ql.lloyd(n),
      ql.icquant(ql.lloyd(n)),
      ql.easyquant(n, steps=200),
    )
    yield (n, *(_error(method, w) for method in methods))


def _error(method: ql.Quantizer, w: Array) -> float:
  out = ql.dequantize(ql.quantize(method, w))
  return float(jnp.mean((out - w) ** 2) / jnp.var(w))


def index_code(rows: int = 512) -> Iterator[Row]:
  """Cost of the gap code in bits per weight.

  Args:
    rows: of `DIM` i.i.d. elements.

  Yields:
    `(ratio, gap_bits, bound, exact, stored)`: Lemma 1, the exact expectation,
    and the bits of the stored streams.
  """
  w = jax.random.normal(jax.random.key(1), (DIM, rows))
  for ratio in (0.01, 0.02, 0.05, 0.0825, 0.1):
    bits = gaps.best_bits(ratio)
    q = ql.quantize(ql.icquant(ql.rtn(2), ratio=ratio, gap_bits=bits), w)
    stored = ql.nbits(q.grid.labels) / w.size
    bound = gaps.expected_bits(ratio, bits)
    yield ratio, bits, bound, gaps.expected_bits(ratio, bits, DIM), stored


def shrinkage(rows: int = 500) -> Iterator[Row]:
  """How far the largest inlier reaches, as a fraction of the largest element.

  Args:
    rows: of i.i.d. elements.

  Yields:
    `(row length, at 1 %, at 5 %, at 10 % outliers)`.
  """
  for dim in (1024, 4096, 11008):
    w = jnp.abs(jax.random.normal(jax.random.key(2), (dim, rows)))

    def inner(ratio, w=w):
      label = ql.outliers(ratio)(w, jnp.array(True)).unpack()
      inlier = jnp.max(jnp.where(label, 0, w), axis=0)
      return float(jnp.mean(inlier / jnp.max(w, axis=0)))

    yield dim, inner(0.01), inner(0.05), inner(0.1)


def ranges(channels: int = 64) -> Iterator[Row]:
  """Where EasyQuant's range ends, in standard deviations.

  Args:
    channels: of `DIM` elements with standard deviation 0.02, the paper's.

  Yields:
    `(bits, start, after 100 steps, after 200 steps)`.
  """
  sigma = 0.02
  w = sigma * jax.random.normal(jax.random.key(3), (DIM, channels))
  for n in (2, 3, 4):

    def end(steps, n=n):
      grid, _ = ql.quantize(ql.easyquant(n, steps=steps), w).parts
      return float(jnp.mean(grid.grid.scale)) * (2 ** (n - 1) - 1) / sigma

    yield n, end(0), end(100), end(200)


def show() -> None:
  """Prints all four tables."""
  _table(
    "mean squared error / variance",
    "bits",
    "rtn",
    "icquant(rtn)",
    "lloyd",
    "icquant(lloyd)",
    "easyquant",
    rows=errors(),
  )
  _table(
    "gap code, bits per weight",
    "ratio",
    "b",
    "Lemma 1",
    "exact",
    "stored",
    rows=index_code(),
  )
  _table(
    "range left to the inliers", "row", "1 %", "5 %", "10 %", rows=shrinkage()
  )
  _table(
    "EasyQuant's range / sigma",
    "bits",
    "start",
    "100 steps",
    "200 steps",
    rows=ranges(),
  )


def _table(title: str, *columns: str, rows: Iterator[Row]) -> None:
  from rich import console, table

  out = table.Table(title=title)
  for column in columns:
    out.add_column(column, justify="right")
  for row in rows:
    out.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row))
  console.Console().print(out)
