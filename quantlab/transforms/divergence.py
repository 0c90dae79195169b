"""Ranges by Kullback-Leibler divergence.

A threshold clips a histogram of magnitudes to its first i bins, the reference
p; merging those into as many levels as there are codes, and spreading each
level over its bins that are not empty, gives the candidate q. The threshold
with the least divergence wins.

Shape letters: R rows, E elements per row, B bins, L levels.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from quantlab.core import base, histograms, numerics
from quantlab.transforms import estimate

Array = jax.Array


@base.interned
def kl(
  *,
  bins: int = 2048,
  start: float = 0.5,
  positive: bool = False,
  fold: bool = True,
  exchanged: bool = False,
) -> base.Estimator:
  """Clips magnitudes where the divergence of their histogram is least.

  The defaults are the standard calibration of 8-bit inference engines. It needs
  many elements and no spike: the zeros behind a ReLU make it clip nearly all.

  Args:
    bins: of the histogram, from 0 to the largest magnitude.
    start: the fraction of the bins from which thresholds are tried. No
      threshold keeps fewer bins than there are levels.
    positive: only elements above 0 enter the histogram, where there are any.
    fold: the mass beyond a threshold is added to the last bin of p.
    exchanged: the normalizer is log(P / Q) instead of log(Q / P); see
      `divergence`. P is the mass of the whole histogram, Q that of q.

  Returns:
    An estimator: the part of the min-max range between `-T` and `T`. A
    symmetric spec has its largest code as levels; of another, the side that
    reaches farther gets its share of the steps.

  Raises:
    ValueError: `bins` is not positive, or `start` is not in [0, 1].

  References:
    Migacz, "8-bit inference with TensorRT", 2017, in the form of PaddleSlim.
    Reconstruction: levels take the same number of bins within one (there the
    last takes what remains), of equal divergences the largest threshold wins,
    and all that concerns asymmetric specs.
  """
  if bins < 1 or not 0 <= start <= 1:
    raise ValueError(
      f"kl takes bins >= 1 and start in [0, 1], got {bins=}, {start=}"
    )

  find = functools.partial(
    _threshold,
    bins=bins,
    first=max(1, math.ceil(start * bins)),
    positive=positive,
    fold=fold,
    exchanged=exchanged,
  )

  def estimator(rows, weight, spec):
    rows = jax.lax.stop_gradient(rows)
    lo, hi = estimate.minmax(rows, weight, spec)
    most, levels = _levels(lo, hi, spec)
    search = functools.partial(find, most=most)
    threshold = numerics.by_columns(search, rows.T, weight.T, levels)
    return base.Range(jnp.maximum(lo, -threshold), jnp.minimum(hi, threshold))

  return estimator


@base.interned
def kl_improved(*, bins: int = 2048, start: float = 0.5) -> base.Estimator:
  """`kl` for what passes a ReLU: positives only, not folded, exchanged.

  Args:
    bins: of the histogram.
    start: the fraction of the bins from which thresholds are tried.

  Returns:
    An estimator; see `kl`.

  References:
    CFWS, arXiv 2312.10588, whose calibrator is not published. Reconstruction:
    all but the positive elements and the exchanged normalizer, above all that
    P counts the clipped mass; otherwise nothing would speak against clipping.
  """
  return kl(bins=bins, start=start, positive=True, fold=False, exchanged=True)


def _threshold(
  x: Array,
  weight: Array,
  levels: Array,
  *,
  bins: int,
  positive: bool,
  **kwargs: Any,
) -> Array:
  """The best threshold of each column."""
  rows, part = x.T, weight.T > 0
  if positive:
    above = part & (rows > 0)
    part = jnp.where(jnp.any(above, axis=1, keepdims=True), above, part)
  largest = jnp.max(jnp.where(part, jnp.abs(rows), 0), axis=1)
  width = jnp.where(largest > 0, largest, 1) / bins
  index = jnp.floor(jnp.abs(rows) / width[:, None])
  counts = histograms.counts(index, part * weight.T, bins).astype(x.dtype)
  scan = functools.partial(divergences, **kwargs)
  found = jax.vmap(scan)(counts, levels)
  # From the largest threshold down: of equals, the first is taken.
  kept = bins - jnp.argmin(found[:, ::-1], axis=1)
  return jnp.minimum((kept + 0.5) * width, largest)


def _levels(lo: Array, hi: Array, spec: base.IntSpec) -> tuple[int, Array]:
  """The most levels that magnitudes can have, and what each row gives them."""
  if spec.symmetric:
    most = max(1, spec.hi)
    return most, jnp.full(lo.shape, most)
  most = spec.hi - spec.lo
  reach = jnp.maximum(jnp.abs(lo), jnp.abs(hi))
  share = jnp.clip(reach / jnp.where(hi > lo, hi - lo, 1), 1 / most, 1)
  return most, jnp.round(most * share).astype(jnp.int32)


def divergence(
  p: Array, q: Array, *, total: Array | None = None, exchanged: bool = False
) -> Array:
  """Of a histogram q from a histogram p, over the bins where neither is 0.

    D = (1 / P) * sum p * (log(Q * p) - log(P * q)),   P = sum p, Q = sum q

  and with P and Q exchanged between the two logarithms

    D = (1 / P) * sum p * (log(P * p) - log(Q * q)).

  Args:
    p: `[B]`, the reference.
    q: `[B]`, the candidate.
    total: P, where it is not the sum of `p`.
    exchanged: the second form.

  Returns:
    A scalar, in nats.

  Example:
    >>> p, q = jnp.array([4.0, 0, 2, 4]), jnp.array([2.0, 2, 0, 4])
    >>> [round(float(divergence(p, q, exchanged=e)), 4) for e in (False, True)]
    [0.0987, 0.4558]
  """
  total = jnp.sum(p) if total is None else total
  both = (p != 0) & (q != 0)
  ratio = jnp.log(jnp.sum(q) / total) * (-1 if exchanged else 1)
  p, q = jnp.where(both, p, 1), jnp.where(both, q, 1)
  terms = p * (jnp.log(p) - jnp.log(q) + ratio)
  return jnp.sum(jnp.where(both, terms, 0)) / total


def divergences(
  counts: Array,
  levels: Array,
  *,
  most: int,
  first: int,
  fold: bool,
  exchanged: bool,
) -> Array:
  """The `divergence` of every threshold.

  A level's q is its mean, so sums over bins are sums over levels of prefix
  sums' differences: L instead of B terms each.

  Args:
    counts: `[B]` histogram of magnitudes.
    levels: L, a scalar.
    most: the largest L.
    first: the least number of bins to keep.
    fold: see `kl`.
    exchanged: see `kl`.

  Returns:
    `[B - first + 1]`, of keeping `first .. B` bins; infinite where a threshold
    keeps fewer bins than levels, or ends on an empty bin to fold into.
  """
  bins = counts.size
  total = jnp.sum(counts)
  unit = bins / jnp.where(total > 0, total, 1)  # keeps logarithms around 0

  def log_of(mass, over=1.0):
    return jnp.log(jnp.where(mass > 0, mass * unit / over, 1))

  def prefix(values):
    return jnp.pad(jnp.cumsum(values), (1, 0))

  mass, full = prefix(counts), prefix((counts > 0).astype(counts.dtype))
  entropy = prefix(counts * log_of(counts))

  def score(i):
    edges = jnp.minimum(jnp.arange(most + 1) * i // levels, i)
    level = jnp.diff(mass[edges])
    mean = log_of(level, jnp.maximum(jnp.diff(full[edges]), 1))
    sum_p, sum_q, kept = entropy[i], jnp.sum(level * mean), mass[i]
    ratio = jnp.log(jnp.where(kept > 0, kept, 1) / total)
    if fold:
      last, beyond = counts[i - 1], total - kept
      whole = last + beyond
      sum_p += whole * log_of(whole) - last * log_of(last)
      sum_q += beyond * mean[levels - 1]
      kept_p, valid = total, last > 0
    else:
      kept_p, valid = kept, kept > 0
    sum_p += kept_p * (-ratio if exchanged else ratio)
    valid &= (i >= levels) | (i == bins)
    return jnp.where(valid, (sum_p - sum_q) / total, jnp.inf)

  return jax.lax.map(score, jnp.arange(first, bins + 1), batch_size=16)
