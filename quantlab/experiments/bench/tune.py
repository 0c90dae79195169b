"""Finds how the Triton kernel divides its work best, for `kernels.tuned`.

On a GPU by time. Elsewhere by what the kernel compiles to for an H200, which is
no time, and so changes the rule's way (`triton.choose`) only where nothing that
is counted gets worse: a better way takes fewer instructions, or as many with
more warps on a processor, and has at least as many warps and bytes of loads on
the way there.

Shape letters: M rows of activations, K contraction, N output.
"""

from collections.abc import Callable, Sequence
import dataclasses
import datetime
import functools
import itertools
import math
from typing import Any

import jax

from quantlab.experiments import aot
from quantlab.experiments.bench import kernels, ways
from quantlab.kernels import triton, tuned

SHAPES = ((4096, 4096), (8192, 28672))
"""(K, N) that have an entry each."""

ROWS = (16, 64)
"""M that have an entry each."""

TILES = ((64, 4), (128, 4), (128, 8))
"""Rows of a tile and warps. 256 rows are two tiles of 128, thread by thread."""

TIE = 1.03
"""Ways that cost at most this, in units of the least, are equally good."""

TARGET = "h200"
"""What is compiled for where there is no GPU."""

Measure = Callable[[ways.Product, Sequence[triton.Config]], Sequence[ways.Way]]


def run(*, rounds: int = 9, only: Sequence[str] = ()) -> dict[str, Any]:
  """A table for the GPU of this machine, or for an H200 if it has none.

  Args:
    rounds: timed rounds; the median counts.
    only: names, or starts of names, of formats; all if empty.

  Returns:
    The table: `device`, `date`, `versions` and `entries`, each as
    `tuned.Entry`.

  Raises:
    ValueError: nothing matches `only`, a product is wrong, no way fits, or
      there is no GPU and nothing can be compiled.
  """
  every = formats()
  names = [n for n in every if not only or n.startswith(tuple(only))]
  if not names:
    raise ValueError(f"{only=} matches none of {every}")
  products = [
    ways.Product(*each) for each in itertools.product(names, ROWS, SHAPES)
  ]
  if jax.default_backend() == "gpu":
    device, versions = jax.devices()[0].device_kind, {"jax": jax.__version__}
    measure = functools.partial(ways.by_seconds, rounds=rounds)
    entries = [timed(product, measure) for product in products]
  elif aot.missing():
    raise ValueError(f"no GPU, and nothing to compile with: {aot.missing()}")
  else:
    device, versions = "NVIDIA H200", aot.versions()
    report = aot.run(TARGET, __name__, [f"{name}, M=" for name in names])
    measure = functools.partial(ways.by_instructions, report)
    entries = [counted(product, measure) for product in products]
  return {
    "device": device,
    "date": datetime.date.today().isoformat(),
    "versions": versions,
    "entries": entries,
  }


def formats() -> list[str]:
  """Names of the formats that the kernel takes."""
  return [name for name in kernels.FORMATS if _taken(name)]


def _taken(name: str) -> bool:
  tiny = ways.Product(name, 1, (256, 128))
  try:
    jax.eval_shape(triton.matmul, *tiny.arguments())
  except NotImplementedError:
    return False
  return True


def cases(target: str) -> dict[str, aot.Case]:
  """What `aot.run` compiles: all ways, at one shape.

  Args:
    target: `TARGET`.
  """
  if target != TARGET:
    raise ValueError(f"{target=} is not {TARGET}")
  found = {}
  for name, m in itertools.product(formats(), ROWS):
    product = ways.Product(name, m, SHAPES[0])
    for config in _configs(product.key(), more=0):
      multiply = functools.partial(triton.matmul, config=config)
      found[product.case(config)] = multiply, product.arguments()
  return found


def _configs(key: tuned.Key, more: int) -> list[triton.Config]:
  """The rule's way, and others of one stage less, as many, or `more`."""
  rule = triton.choose(key.m, key.k, key.n, key.terms)
  stages = range(max(1, rule.stages - 1), rule.stages + more + 1)
  others = [
    triton.Config(rows, triton.splits(rows, key.k, key.n), warps, count)
    for (rows, warps), count in itertools.product(TILES, stages)
  ]
  return list(dict.fromkeys([rule, *others]))


def counted(product: ways.Product, measure: Measure) -> dict[str, Any]:
  """An entry by instructions; it leaves splits to the rule.

  More stages than the rule's are not tried: they are as many instructions.

  Args:
    product: what is multiplied.
    measure: gives what is known of ways, in their order.
  """
  key = product.key()
  found = measure(product, _configs(key, more=0))
  entry = _entry(key, found, "instructions")
  del entry["splits"]
  return entry


def timed(product: ways.Product, measure: Measure) -> dict[str, Any]:
  """An entry by seconds, of half and twice the rule's splits as well.

  Args:
    product: what is multiplied.
    measure: as in `counted`.
  """
  key = product.key()
  rule, *others = _configs(key, more=1)
  config = best(measure(product, [rule, *others])).config
  splits = (config.splits * 2, max(1, config.splits // 2))
  divided = [dataclasses.replace(config, splits=count) for count in splits]
  # The rule's way is timed again, beside those that it is compared with.
  last = dict.fromkeys([rule, config, *divided])
  return _entry(key, measure(product, list(last)), "seconds")


def _entry(
  key: tuned.Key, found: Sequence[ways.Way], by: str
) -> dict[str, Any]:
  way = best(found)
  return {
    **key._asdict(),
    **dataclasses.asdict(way.config),
    "by": by,
    "cost": way.cost,
    "rule": found[0].cost,
  }


def best(found: Sequence[ways.Way]) -> ways.Way:
  """The best way, or the first, the rule's, where none is better.

  Args:
    found: what is known of each way.

  Raises:
    ValueError: none fits.
  """
  rule = found[0]
  kept = [
    way
    for way in found
    if math.isfinite(way.cost)
    and way.warps >= rule.warps
    and way.loads >= rule.loads
  ]
  if not kept:
    raise ValueError(f"no way fits: {found}")
  most = TIE * min(way.cost for way in kept)
  return max(
    (way for way in kept if way.cost <= most), key=lambda way: way.warps
  )


def show(results: dict[str, Any]) -> None:
  """Prints a table's entries, beside what the rule's way costs."""
  from rich import console, table

  out = table.Table(title=results["device"])
  for column in (*tuned.Key._fields, "way", "cost", "rule's", "by"):
    out.add_column(column)
  for entry in results["entries"]:
    way = (entry.get(x) for x in ("rows", "warps", "stages", "splits"))
    out.add_row(
      *(str(entry[field]) for field in tuned.Key._fields),
      "x".join(str(part) for part in way if part is not None),
      *(f"{entry[field]:.3g}" for field in ("cost", "rule")),
      entry["by"],
    )
  console.Console().print(out)
