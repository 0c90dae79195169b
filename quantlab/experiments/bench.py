"""Speed of quantizers, of the bit codes and of quantized training steps.

All cases run in turn, round after round, and the median round counts: what
slows the machine for a while slows every case alike. qwix, the JAX
quantization library, and PyTorch's learnable fake quantization are measured
beside them where they are installed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import importlib.util
import os
import platform
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import quantlab as ql
from quantlab.core import bits, flips
from quantlab.experiments import train
from quantlab.models import cnn


class Case(NamedTuple):
  """What is timed.

  Attributes:
    name: it.
    call: does it once.
    work: weights or images of a call.
  """

  name: str
  call: Callable[[], Any]
  work: int


def quantizers(size: int) -> Iterator[Case]:
  """Quantizers and bit codes on a `[size, size]` float32 matrix.

  Args:
    size: rows and columns; a multiple of 128.

  Raises:
    ValueError: `size` is not.
  """
  if size < 128 or size % 128:
    raise ValueError(f"{size=} must be a multiple of 128")
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
    yield Case(name, lambda method=method: ql.quantize(method, w), w.size)
  if importlib.util.find_spec("qwix"):
    yield Case("qwix int4, minmax, tiles of 128", _qwix(w), w.size)
  labels = ql.quantize(methods["icquant over rtn 2-bit"], w).grid.labels
  decode = jax.jit(lambda labels: labels.unpack())
  yield Case("gap code, decode", lambda: decode(labels), w.size)
  for n in (2, 3, 4, 8):
    codes = jax.random.randint(jax.random.key(n), w.shape, 0, 2**n)
    codes = codes.astype(jnp.uint8)
    words = bits.pack(codes, n, 0)
    yield Case(f"pack {n}-bit", lambda c=codes, n=n: bits.pack(c, n, 0), w.size)
    yield Case(
      f"unpack {n}-bit",
      lambda w=words, n=n: bits.unpack(w, n, size, 0),
      w.size,
    )
  words = jnp.zeros(w.shape, jnp.uint32)
  flip = jax.jit(functools.partial(flips.flip_bits, rate=0.01))
  key = jax.random.key(0)
  yield Case(
    "flip 1 % of all bits, bytes",
    lambda: flip(words, key=key),
    words.nbytes,
  )


_TENSOR = {"exact_zero": True, "granularity": ql.per_tensor}
_RTN8 = ql.rtn(8, symmetric=True, granularity=ql.per_tensor)
_HINDSIGHT8 = ql.rtn(8, observer=ql.ema(), **_TENSOR)
_WAYS = {
  "float": train.NOTHING,
  "LSQ+ W4A4": train.Plans(
    ql.by_path([("kernel", ql.lsq(4, start=ql.three_sigma)), ("", ql.keep())]),
    ql.by_path([("(conv|head)/in$", ql.lsq_plus(4)), ("", ql.keep())]),
  ),
  "in-hindsight W8A8G8": train.Plans(
    ql.by_path([("kernel", _RTN8), ("", ql.keep())]),
    ql.by_path([("(conv|head)/in$", _HINDSIGHT8), ("", ql.keep())]),
    ql.by_path(
      [
        (
          "(conv|head)/out$",
          ql.rtn(8, observer=ql.ema(), stochastic=True, **_TENSOR),
        ),
        ("", ql.keep()),
      ]
    ),
  ),
  "current ranges, W8A8": train.Plans(
    ql.by_path([("kernel", _RTN8), ("", ql.keep())]),
    ql.by_path([("(conv|head)/in$", ql.rtn(8, **_TENSOR)), ("", ql.keep())]),
  ),
}


def steps(network: str, *, batch: int = 128, size: int = 32) -> Iterator[Case]:
  """Training steps of a classifier of `[batch, size, size, 3]` images.

  Args:
    network: a key of `models.cnn.NETWORKS`.
    batch: images of a step.
    size: their sides.

  Raises:
    ValueError: there is no such network.
  """
  if network not in cnn.NETWORKS:
    raise ValueError(f"{network=} is none of {', '.join(cnn.NETWORKS)}")
  model = cnn.NETWORKS[network]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, size, size, 3), np.float32)
  labels = np.arange(batch) % model.classes
  variables = jax.jit(model.init)(jax.random.key(1), x)
  optimizer = train.separate(train.sgd(100), train.sgd(100))
  for name, plans in _WAYS.items():
    training = train.start(model, variables, optimizer, plans, (x, labels))
    update = train.step(model, optimizer, plans)
    yield Case(
      f"{network}, {name}",
      lambda update=update, training=training: update(training, x, labels),
      batch,
    )
  if network == "resnet8" and importlib.util.find_spec("torch"):
    from quantlab.experiments import bench_torch

    for name, step in bench_torch.steps(batch, size):
      yield Case(f"{network}, {name}", step, batch)


def _qwix(w: jax.Array) -> Callable[[], Any]:
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
  cases: Iterable[Case], *, rounds: int = 5, only: Sequence[str] = ()
) -> dict[str, Any]:
  """Times cases.

  Args:
    cases: of `quantizers` or `steps`.
    rounds: timed rounds after one that compiles.
    only: names, or starts of names, to run; all if empty.

  Returns:
    `machine`, and under `cases` by name `seconds` (the median), `per_second`
    (weights or images) and `ratio`, of the seconds to those of the first case.

  Raises:
    ValueError: `rounds` is out of range, or nothing matches `only`.
  """
  if rounds < 1:
    raise ValueError(f"{rounds=} must be at least 1")
  every = list(cases)
  chosen = [
    case for case in every if not only or case.name.startswith(tuple(only))
  ]
  if not chosen:
    names = [case.name for case in every]
    raise ValueError(f"{only=} matches none of {names}")
  for case in chosen:
    jax.block_until_ready(case.call())
  times: list[list[float]] = [[] for _ in chosen]
  for _ in range(rounds):
    for case, found in zip(chosen, times, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(case.call())
      found.append(time.perf_counter() - start)
  seconds = [statistics.median(found) for found in times]
  return {
    "machine": _machine(),
    "rounds": rounds,
    "cases": {
      case.name: {
        "seconds": s,
        "per_second": case.work / s,
        "ratio": s / seconds[0],
      }
      for case, s in zip(chosen, seconds, strict=True)
    },
  }


def show(results: dict[str, Any]) -> None:
  """Prints results as a table."""
  from rich import console, table

  machine = results["machine"]
  out = table.Table(
    title=f"{machine['device']}, {machine['cores']} cores, jax {machine['jax']}"
  )
  out.add_column("case")
  for column in ("ms", "per second", "times the first"):
    out.add_column(column, justify="right")
  for name, found in results["cases"].items():
    out.add_row(
      name,
      f"{found['seconds'] * 1e3:.1f}",
      f"{found['per_second']:.3g}",
      f"{found['ratio']:.2f}",
    )
  console.Console().print(out)


def _machine() -> dict[str, Any]:
  return {
    "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "jax": jax.__version__,
  }
