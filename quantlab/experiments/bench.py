"""Throughput of quantizers and of the bit codes, in weights per second.

All cases run in turn, round after round, and the median round counts: what
slows the machine for a while slows every case alike. qwix, the JAX
quantization library, is measured beside them where it is installed.
"""

from collections.abc import Callable, Iterator, Sequence
import importlib.util
import os
import platform
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

import quantlab as ql
from quantlab.core import bits

Case = Callable[[], Any]


def cases(size: int) -> Iterator[tuple[str, Case]]:
  """Names and functions to time on a `[size, size]` float32 matrix.

  Args:
    size: rows and columns; a multiple of 128.
  """
  w = jax.random.normal(jax.random.key(0), (size, size))
  block = ql.rtn(4, granularity=ql.per_block(0, 128))
  methods = {
    "rtn 4-bit, blocks of 128": block,
    "rtn 2-bit": ql.rtn(2),
    "icquant over rtn 2-bit": ql.icquant(ql.rtn(2)),
    "easyquant 4-bit, 100 steps": ql.easyquant(4),
    "lloyd 4-bit": ql.lloyd(4),
  }
  for name, method in methods.items():
    yield name, lambda method=method: ql.quantize(method, w)
  if importlib.util.find_spec("qwix"):
    yield "qwix int4, minmax, tiles of 128", _qwix(w)
  labels = ql.quantize(methods["icquant over rtn 2-bit"], w).grid.labels
  decode = jax.jit(lambda labels: labels.unpack())
  yield "gap code, decode", lambda: decode(labels)
  for n in (2, 3, 4, 8):
    codes = jax.random.randint(jax.random.key(n), w.shape, 0, 2**n)
    codes = codes.astype(jnp.uint8)
    words = bits.pack(codes, n, 0)
    yield f"pack {n}-bit", lambda c=codes, n=n: bits.pack(c, n, 0)
    yield f"unpack {n}-bit", lambda w=words, n=n: bits.unpack(w, n, size, 0)


def _qwix(w: jax.Array) -> Case:
  import qwix

  @jax.jit
  def quantize(w):
    return qwix.quantize(
      w,
      jnp.int4,
      channelwise_axes=(1,),
      tiled_axes={0: 128},
      calibration_method="minmax",
    )

  return lambda: quantize(w)


def run(
  size: int, *, rounds: int = 5, only: Sequence[str] = ()
) -> dict[str, Any]:
  """Times the cases.

  Args:
    size: rows and columns of the matrix, a multiple of 128.
    rounds: timed rounds after one that compiles.
    only: names, or starts of names, to run; all if empty.

  Returns:
    `machine`, and under `cases` by name `seconds` (the median) and
    `weights_per_second`.

  Raises:
    ValueError: `size` or `rounds` is out of range, or nothing matches `only`.
  """
  if size < 128 or size % 128:
    raise ValueError(f"{size=} must be a multiple of 128")
  if rounds < 1:
    raise ValueError(f"{rounds=} must be at least 1")
  every = dict(cases(size))
  chosen = {
    name: case
    for name, case in every.items()
    if not only or name.startswith(tuple(only))
  }
  if not chosen:
    raise ValueError(f"{only=} matches none of {list(every)}")
  for case in chosen.values():
    jax.block_until_ready(case())
  times: dict[str, list[float]] = {name: [] for name in chosen}
  for _ in range(rounds):
    for name, case in chosen.items():
      start = time.perf_counter()
      jax.block_until_ready(case())
      times[name].append(time.perf_counter() - start)
  seconds = {name: statistics.median(found) for name, found in times.items()}
  return {
    "machine": _machine(),
    "shape": [size, size],
    "rounds": rounds,
    "cases": {
      name: {"seconds": s, "weights_per_second": size * size / s}
      for name, s in seconds.items()
    },
  }


def show(results: dict[str, Any]) -> None:
  """Prints results as a table."""
  from rich import console, table

  machine = results["machine"]
  out = table.Table(
    title=f"{results['shape']} float32, {machine['device']}, "
    f"{machine['cores']} cores, jax {machine['jax']}"
  )
  out.add_column("case")
  out.add_column("ms", justify="right")
  out.add_column("M weights/s", justify="right")
  for name, found in results["cases"].items():
    out.add_row(
      name,
      f"{found['seconds'] * 1e3:.1f}",
      f"{found['weights_per_second'] / 1e6:.0f}",
    )
  console.Console().print(out)


def _machine() -> dict[str, Any]:
  return {
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "jax": jax.__version__,
  }
