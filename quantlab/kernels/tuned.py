"""What tuning found for a kind of device, in the folder `tables`.

A table is a JSON file, named after the device kind; `launch.bench tune` writes
it. A kind without a table gives nothing, and the kernel's rule decides.

Shape letters: M rows of activations, K contraction, N outputs.
"""

import dataclasses
import functools
from importlib import resources
import json
import math
import re
from typing import Any, NamedTuple

import jax

from quantlab.core import bits as layout
from quantlab.core import grids, qtensor
from quantlab.kernels import form

SAME = {"nvidia_h100_80gb_hbm3": "nvidia_h200"}
"""Names of kinds that read the table of another.

Both have 132 processors of the same kind, and differ in their memory.
"""

FOLDER = resources.files("quantlab.kernels") / "tables"
"""Where the tables are."""


class Key(NamedTuple):
  """What the best way to divide the work depends on.

  Attributes:
    bits: of a code, and of a label if there are labels.
    group: codes along K that share a scale; 0 if all of a column do.
    terms: bf16 numbers of a value that is looked up; 0 for uniform codes.
    m: M, padded: 16, 32, 64 or 128.
    k: K.
    n: N.
  """

  bits: tuple[int, ...]
  group: int
  terms: int
  m: int
  k: int
  n: int

  @property
  def form(self) -> tuple[Any, ...]:
    """What the kernel's code depends on.

    Not on the size of K and N, but on the codes of a block of K, and on whether
    tiles of 128 outputs are all whole.
    """
    return *self[:4], layout.block_size(self.k), self.n % 128 == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """The best way that was found, a JSON object of these fields.

  Attributes:
    bits: as in `Key`, and so up to `n`.
    group: codes of a scale.
    terms: of a value.
    m: M.
    k: K.
    n: N.
    rows: as in `triton.Config`, and so warps, stages and splits.
    warps: of a program.
    stages: of its loads.
    splits: of K; None leaves them to the kernel's rule.
    by: "seconds" of a product, or "instructions" of a weight in the loop.
    cost: how many of them.
    rule: how many the way of the kernel's rule takes.
  """

  bits: list[int]
  group: int
  terms: int
  m: int
  k: int
  n: int
  rows: int
  warps: int
  stages: int
  splits: int | None = None
  by: str
  cost: float
  rule: float

  @property
  def key(self) -> Key:
    """What it is for."""
    fields = {name: getattr(self, name) for name in Key._fields[1:]}
    return Key(bits=tuple(self.bits), **fields)


def key(rows: int, w: qtensor.QTensor, terms: int = 1) -> Key:
  """The key of a product.

  Args:
    rows: M.
    w: `[K, N]` in kernel form, arrays or their shapes.
    terms: as in `triton.matmul`.

  Example:
    >>> import quantlab as ql
    >>> four = ql.rtn(4, granularity=ql.per_block(0, 128))
    >>> key(17, ql.quantize(four, jax.numpy.ones((256, 64))))
    Key(bits=(4,), group=128, terms=0, m=32, k=256, n=64)
  """
  labelled = isinstance(w.grid, grids.Labelled)
  planes = [w.codes, w.grid.labels] if labelled else [w.codes]
  cells = form.num_cells(w.grid)
  return Key(
    bits=tuple(plane.bits for plane in planes),
    group=w.shape[0] // cells if cells > 1 else 0,
    terms=0 if isinstance(w.grid, grids.Affine) else terms,
    m=padded(rows),
    k=w.shape[0],
    n=w.shape[1],
  )


def padded(rows: int) -> int:
  """M with the rows of zeros that a kernel adds: 16, 32, 64, ...

  Example:
    >>> padded(1), padded(17), padded(64)
    (16, 32, 64)
  """
  return max(16, 1 << (rows - 1).bit_length())


def lookup(device_kind: str, key: Key) -> dict[str, int] | None:
  """How to divide the work, as tuned on a kind of device.

  The entry of this K and N counts, or else of those of the same `Key.form` the
  one whose number of weights is nearest, by their ratio; the first of equals.
  Splits are only of the K and N that they were tuned for.

  Args:
    device_kind: as jax names it.
    key: of the product.

  Returns:
    `rows`, `warps` and `stages`, maybe `splits`, of a `triton.Config`; None
    where no table or no entry of it is for such a product.

  Raises:
    ValueError: the table is not as it should be.

  Example:
    >>> key = Key(bits=(4,), group=0, terms=0, m=16, k=4096, n=4096)
    >>> print(lookup("cpu", key))
    None
  """
  name = file_name(device_kind)
  entries = [
    entry
    for entry in _table(SAME.get(name, name))
    if entry.key.form == key.form
  ]
  if not entries:
    return None
  entry = min(entries, key=functools.partial(_distance, key))
  found = {name: getattr(entry, name) for name in ("rows", "warps", "stages")}
  if entry.key == key and entry.splits is not None:
    found["splits"] = entry.splits
  return found


def _distance(key: Key, entry: Entry) -> tuple[bool, float]:
  ratio = (entry.k * entry.n) / (key.k * key.n)
  return entry.key != key, abs(math.log(ratio))


def device_kind() -> str:
  """The kind of the device that is compiled for."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return (device or jax.devices()[0]).device_kind


def file_name(device_kind: str) -> str:
  """The name of a kind's table, without `.json`.

  Example:
    >>> file_name("NVIDIA H200")
    'nvidia_h200'
  """
  return re.sub(r"[^a-z0-9]", "_", device_kind.lower())


@functools.lru_cache
def _table(name: str) -> tuple[Entry, ...]:
  """The entries of a table; none if there is no such table."""
  file = FOLDER / f"{name}.json"
  return parse(file.read_text("utf-8"), file.name) if file.is_file() else ()


def parse(text: str, name: str) -> tuple[Entry, ...]:
  """The entries of a table.

  Args:
    text: JSON, of an object with the kind of a `device` and a list `entries` of
      `Entry`.
    name: of the file, that of the kind.

  Raises:
    ValueError: it does not parse, has a field more or less, or is another
      kind's.
  """
  try:
    table = json.loads(text)
    device = table["device"]
    entries = tuple(Entry(**fields) for fields in table["entries"])
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{name} is not a table: {error!r}") from error
  if f"{file_name(device)}.json" != name:
    raise ValueError(f"{name} is a table of another kind: {device=}")
  return entries
