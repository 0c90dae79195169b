"""Kernels compiled for accelerators that this machine does not have.

The compilers of accelerators need none: XLA, Triton, Mosaic and ptxas for a GPU
and libtpu for a TPU come as packages (the extra `aot`). What they make can not
run here. It shows that a kernel compiles, fits into registers and memory, and
how many instructions it takes.

Beside plain jax those packages fill every start with errors about a missing
device. So they stay in a folder of their own, `.venv/aot`, and each target is
compiled by a process of its own.
"""

from collections.abc import Callable, Sequence
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import jax
from jax.experimental import topologies
import numpy as np

from quantlab.experiments import aot_counts

Case = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments, arrays or `jax.ShapeDtypeStruct`."""

_ROOT = pathlib.Path(__file__).parents[2]
_NAME = "quantlab.experiments.aot"
_PLUGIN = "jax-cuda13-plugin"
_DUMPS = "MOSAIC_GPU_DUMP_TO"

TPUS = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
"""Topologies by name."""

TARGETS = ("h200", *TPUS)
"""What can be compiled for."""

# What XLA has to know of the device, in its own form (GpuTargetConfigProto);
# numbers of NVIDIA's H200 data sheet and of compute capability 9.0.
_H200 = f"""
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  clock_rate_ghz: 1.98
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {aot_counts.SHARED}
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
}}
"""


def lower(
  f: Callable[..., Any], args: tuple[Any, ...], platform: str
) -> jax.stages.Lowered:
  """Lowers a function for a platform; needs no package beside jax.

  Finds what a platform's dialect can not say. What its compiler refuses only
  `compile` finds.

  Args:
    f: the function.
    args: arrays or `jax.ShapeDtypeStruct`.
    platform: `cuda` or `tpu`.

  Example:
    >>> lower(lambda x: x @ x.T, (np.ones((8, 8)),), "tpu").out_info.shape
    (8, 8)
  """
  kinds = {"cuda": ("NVIDIA H200", "gpu"), "tpu": ("TPU v6e", "tpu")}
  if platform not in kinds:
    raise ValueError(f"{platform=} is none of {', '.join(kinds)}")
  kind, name = kinds[platform]
  device = jax.sharding.AbstractDevice(kind, 1, name)
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,))


def compile(
  f: Callable[..., Any], args: tuple[Any, ...], target: str
) -> tuple[jax.stages.Compiled, Sequence[aot_counts.Counts]]:
  """Compiles a function for a target, in a process that `run` has started.

  Args:
    f: the function.
    args: arrays or `jax.ShapeDtypeStruct`.
    target: one of `TARGETS`.

  Returns:
    The program, and the counts of its kernels, the longest first.

  Raises:
    RuntimeError: the process was not started by `run`, or the compiler refuses
      (`jax.errors.JaxRuntimeError`).
  """
  if _DUMPS not in os.environ:
    raise RuntimeError("compile: only in a process that aot.run has started")
  folder = pathlib.Path(os.environ[_DUMPS])
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  options: dict[str, bool | str] = {}
  if target in TPUS:
    platform = "tpu"
    devices = topologies.get_topology_desc(TPUS[target], "tpu").devices
  else:
    platform = "cuda"
    options = {
      "xla_gpu_autotune_level": "0",  # measures on a device
      "xla_dump_to": str(folder),
      "xla_dump_emitter_re": ".*",  # without it jax 0.12 writes no PTX
    }
    devices = topologies.get_topology_desc(
      "", platform, target_config=_H200, topology="1x1x1"
    ).devices
  mesh = jax.sharding.Mesh(np.array(devices[:1]), ("device",))
  placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  shapes = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed), args
  )
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = jax.jit(f).trace(*shapes).lower(lowering_platforms=(platform,))
    compiled = lowered.compile(options)
  read = aot_counts.tpu if target in TPUS else aot_counts.gpu
  return compiled, read(folder)


def packages() -> pathlib.Path | None:
  """The folder that holds the packages of the extra `aot`, if there is one."""
  beside = pathlib.Path(sys.prefix) / "aot"
  if (beside / "libtpu").is_dir():
    return beside
  inside = importlib.util.find_spec("libtpu")
  if inside is None or inside.origin is None:
    return None
  return pathlib.Path(inside.origin).parents[1]


def missing() -> str:
  """Why nothing can be compiled here; empty if it can."""
  folder = packages()
  if folder is None:
    return "the packages of the extra aot are not installed: make aot"
  found = importlib.metadata.distributions(name=_PLUGIN, path=[str(folder)])
  versions = [package.version for package in found]
  if versions != [jax.__version__]:
    return f"{_PLUGIN} is {versions}, but jax is {jax.__version__}"
  return ""


def environment(folder: pathlib.Path, dumps: pathlib.Path) -> dict[str, str]:
  """Variables of a process that compiles.

  Args:
    folder: of the packages.
    dumps: where the compilers write, a folder of its own for each process.
  """
  ours = re.compile("JAX_|XLA_|LIBTPU_|TPU_|MOSAIC_|PYTHONPATH$")
  kept = {k: v for k, v in os.environ.items() if not ours.match(k)}
  cuda = folder / "nvidia/cu13"
  finals = "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"
  return kept | {
    "PYTHONPATH": os.pathsep.join([str(_ROOT), str(folder)]),
    "PATH": os.pathsep.join([str(cuda / "bin"), os.environ["PATH"]]),
    "JAX_PLATFORMS": "cpu",  # there is no other device
    "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={cuda}",
    "MOSAIC_GPU_DUMP_PTX": "1",
    _DUMPS: str(dumps),
    "TPU_SKIP_MDS_QUERY": "1",  # asks no cloud which machine this is
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no device to share
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dumps} "
    f"--xla_jf_dump_llo_text=true {finals}",
  }


def run(
  target: str, module: str, only: Sequence[str] = ()
) -> aot_counts.Report:
  """Compiles cases for a target, in a process of its own.

  Args:
    target: one of `TARGETS`.
    module: name of a module with `cases(target) -> dict[str, Case]`.
    only: names, or starts of names, of cases; all if empty.

  Raises:
    ValueError: there is no such target.
    RuntimeError: nothing can be compiled here, or the process broke off.
  """
  if target not in TARGETS:
    raise ValueError(f"{target=} is none of {', '.join(TARGETS)}")
  folder = packages()
  if folder is None or missing():
    raise RuntimeError(missing())
  with tempfile.TemporaryDirectory(prefix="quantlab-aot-") as name:
    out = pathlib.Path(name) / "report.json"
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "quantlab.experiments.aot",
        target,
        module,
        str(out),
        *only,
      ],
      capture_output=True,
      check=False,
      env=environment(folder, pathlib.Path(name) / "dumps"),
      text=True,
    )
    if done.returncode:
      raise RuntimeError(
        f"{target}: exit status {done.returncode}\n{done.stderr[-4000:]}"
      )
    found = json.loads(out.read_text("utf-8"))
  kind = aot_counts.TpuCounts if target in TPUS else aot_counts.GpuCounts
  counts: dict[str, Sequence[aot_counts.Counts]] = {
    case: [kind(**kernel) for kernel in kernels]
    for case, kernels in found["counts"].items()
  }
  return aot_counts.Report(counts, found["errors"])


def _main(target: str, module: str, out: str, *only: str) -> None:
  """What the process does."""
  cases = importlib.import_module(module).cases(target)
  if only and not any(name.startswith(only) for name in cases):
    sys.exit(f"{only=} matches none of {list(cases)}")
  counts, errors = {}, {}
  for name, (f, args) in cases.items():
    if only and not name.startswith(only):
      continue
    try:
      found = compile(f, args, target)[1]
    except (NotImplementedError, RuntimeError, ValueError) as error:
      errors[name] = f"{type(error).__name__}: {error}"
    else:
      counts[name] = [kernel._asdict() for kernel in found]
  text = json.dumps({"counts": counts, "errors": errors})
  pathlib.Path(out).write_text(text, "utf-8")


def versions() -> dict[str, str]:
  """Versions of jax and of the packages that compile."""
  path = [str(packages())]
  found = {"jax": jax.__version__}
  for package in importlib.metadata.distributions(path=path):
    if re.match("jax-cuda|nvidia-cuda|nvidia-nvvm|libtpu", package.name):
      found[package.name] = package.version
  return dict(sorted(found.items()))


if __name__ == "__main__":
  _main(*sys.argv[1:])
