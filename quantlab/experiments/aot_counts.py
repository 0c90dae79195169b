"""What a compiled kernel takes, read from what its compiler leaves.

GPU: ptxas and nvdisasm say it of the PTX that XLA and Mosaic write; the shared
memory of a launch is in XLA's list of launches, or in Mosaic's log of passes.
TPU: libtpu writes the final bundles.

Reconstruction: none of these texts is documented. They are read strictly: what
is not as expected is an error.
"""

import collections
from collections.abc import Mapping, Sequence
import pathlib
import re
import subprocess
from typing import Any, NamedTuple

_VECTOR = 8 * 128 * 4
"""Bytes of a vector register of a TPU."""

SHARED = 232_448
"""Bytes of shared memory that a thread block of an H200 can have."""


class GpuCounts(NamedTuple):
  """What a kernel takes on a GPU.

  Attributes:
    kernel: its name.
    instructions: of the kernel.
    loop: of these in the longest loop that holds no other; 0 without loops.
    registers: of a thread.
    spills: bytes of a thread that are stored because registers ran out.
    shared: bytes of shared memory of a thread block.
  """

  kernel: str
  instructions: int
  loop: int
  registers: int
  spills: int
  shared: int


class TpuCounts(NamedTuple):
  """What a kernel takes on a TPU.

  Attributes:
    kernel: its name.
    bundles: of instructions that are issued together, loops counted once.
    spills: bytes of vector memory that registers are spilled to.
  """

  kernel: str
  bundles: int
  spills: int


Counts = GpuCounts | TpuCounts


class Report(NamedTuple):
  """What became of the cases of a target.

  Attributes:
    counts: of the kernels of each case that compiles, the longest first.
    errors: what the compiler said of each other case.
  """

  counts: dict[str, Sequence[Counts]]
  errors: dict[str, str]

  def faults(self) -> dict[str, str]:
    """What is wrong, by case: errors; on a GPU spills, too much shared memory.

    A TPU takes spilled registers back at the rate of any load: what that costs
    is in the number of bundles.
    """
    found = dict(self.errors)
    for case, kernels in self.counts.items():
      for kernel in kernels:
        if isinstance(kernel, TpuCounts):
          continue
        if kernel.spills:
          found[case] = f"{kernel.kernel} spills {kernel.spills} bytes"
        elif kernel.shared > SHARED:
          found[case] = f"{kernel.kernel}: {kernel.shared=} exceeds {SHARED}"
    return found


def tpu(folder: pathlib.Path) -> list[TpuCounts]:
  """Counts of the kernels of a program, the longest first.

  Args:
    folder: what libtpu wrote.
  """
  found = []
  for file in folder.glob("*-schedule-analysis_final_bundles.txt"):
    stamp, rest = file.name.split("-", maxsplit=1)
    name = re.split(r"-\d+-schedule", rest)[0]
    if name == "TLP" or name.startswith("<"):  # what surrounds the kernels
      continue
    (code,) = folder.glob(f"{stamp}-{name}-[0-9]*-final_bundles.txt")
    slots = re.findall(r"vmem:\[(#allocation\d+_spill)", code.read_text())
    bundles = _number(r"total scheduled bundles:\s+(\d+)", file.read_text())
    found.append(TpuCounts(name, bundles, len(set(slots)) * _VECTOR))
  return sorted(found, key=lambda counts: counts.bundles, reverse=True)


def gpu(folder: pathlib.Path) -> list[GpuCounts]:
  """Counts of the kernels of a program, the longest first.

  Args:
    folder: what XLA and Mosaic wrote; gets the assembled kernels as well.
  """
  pattern = r"\] (\S+) grid:.* shared_memory: (\d+) bytes"
  (sequence,) = folder.glob("*thunk_sequence.txt")
  by_xla = dict(re.findall(pattern, sequence.read_text()))
  found = []
  for file in folder.glob("*.ptx"):
    if not file.stat().st_size:  # of constants alone
      continue
    launches: Mapping[str, Any] = by_xla
    log = file.with_suffix(".mlir-passes.log")
    if log.exists():  # Mosaic launches its kernels itself
      pattern = r"dynamic_shared_memory_size %c(\d+)_i32"
      size = _number(pattern, log.read_text())
      launches = collections.defaultdict(lambda size=size: size)
    found += _assembled(file, launches)
  lost = set(by_xla) - {counts.kernel for counts in found}
  if lost:
    raise ValueError(f"the compiler wrote no PTX of {', '.join(sorted(lost))}")
  return sorted(found, key=lambda counts: counts.instructions, reverse=True)


def _assembled(
  ptx: pathlib.Path, launches: Mapping[str, Any]
) -> list[GpuCounts]:
  cubin = ptx.with_suffix(".cubin")
  said = _tool("ptxas", "-v", "-arch=sm_90a", ptx, "-o", cubin)
  code = _tool("nvdisasm", "-c", cubin)
  found = []
  for part in said.split("Compiling entry function '")[1:]:
    name = part.split("'")[0]
    static = re.search(r"(\d+) bytes smem", part)
    instructions, loop = lengths(code.split(f".section\t.text.{name},")[1])
    found.append(
      GpuCounts(
        kernel=name,
        instructions=instructions,
        loop=loop,
        registers=_number(r"Used (\d+) registers", part),
        spills=_number(r"(\d+) bytes spill stores", part),
        shared=int(launches[name]) + int(static[1] if static else 0),
      )
    )
  return found


def lengths(code: str) -> tuple[int, int]:
  r"""Instructions of a kernel, and of its longest innermost loop.

  Args:
    code: the kernel, as nvdisasm prints it.

  Example:
    >>> lengths('''
    ... .L_x_0:
    ...         /*0000*/       IADD3 R0, R0, 0x1, RZ ;
    ... .L_x_1:
    ...         /*0010*/       IADD3 R1, R1, 0x1, RZ ;
    ...         /*0020*/   @P0 BRA `(.L_x_1) ;
    ...         /*0030*/   @P1 BRA `(.L_x_0) ;
    ...         /*0040*/       EXIT ;
    ... .L_x_2:
    ...         /*0050*/       BRA `(.L_x_2) ;''')
    (6, 2)
  """
  starts: dict[str, int] = {}
  loops, count = [], 0
  for line in code.split("\n\t.section", maxsplit=1)[0].splitlines():
    label = re.match(r"(\.L_\w+):", line)
    if label:
      starts[label[1]] = count
    if not re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+[^\s/]", line):
      continue
    count += 1
    jump = re.search(r"\bBRA\b.*\((\.L_\w+)\)", line)
    start = starts.get(jump[1], count) if jump else count
    if start < count - 1:  # a jump to itself fills the end of a kernel
      loops.append(range(start, count))
  inner = [
    loop
    for loop in loops
    if not any(
      other != loop and other[0] in loop and other[-1] in loop
      for other in loops
    )
  ]
  return count, max(map(len, inner), default=0)


def _number(pattern: str, text: str) -> int:
  found = re.search(pattern, text)
  if found is None:
    raise ValueError(f"{pattern!r} is not in {text[:500]!r}")
  return int(found[1])


def _tool(*command: Any) -> str:
  done = subprocess.run(command, capture_output=True, check=True, text=True)
  return done.stdout + done.stderr


def show(reports: Mapping[str, Report]) -> None:
  """Prints each case's longest kernel for each target, and what is wrong."""
  from rich import console, table

  terminal = console.Console()
  for target, report in reports.items():
    out = table.Table(title=target)
    kernels = [kernel for case in report.counts.values() for kernel in case]
    out.add_column("case")
    for field in kernels[0]._fields if kernels else ():
      out.add_column(field, justify="left" if field == "kernel" else "right")
    for case, found in report.counts.items():
      out.add_row(case, *map(str, found[0] if found else ()))
    terminal.print(out)
    for case, fault in report.faults().items():
      terminal.print(f"{target}: {case}: {fault}", markup=False)
