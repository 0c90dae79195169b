"""The environment of every test and doctest: one for all, set before jax loads.

Tests run on eight virtual CPU devices, without network, with implicit rank
promotion forbidden. To run them on an accelerator, name it:
`JAX_PLATFORMS=cuda make unit`.
"""

import atexit
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import tempfile

_ROOT = pathlib.Path(__file__).parent
# Most programs of a test run once, and compile for longer than they run: they
# are not optimized, and compile in less than half the time. A test of what
# optimization could change asks for it; `XLA_FLAGS` says otherwise for all.
_FLAGS = {
  "--xla_force_host_platform_device_count": 8,
  "--xla_backend_optimization_level": 0,
  "--xla_cpu_parallel_codegen_split_count": 1,
  "--xla_llvm_disable_expensive_passes": "true",
}
# Version 0.12 has only the emitters that compile slowly.
if importlib.metadata.version("jaxlib") < "0.12":
  _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
  given = os.environ.get("XLA_FLAGS", "")
  flags = [f"{k}={v}" for k, v in _FLAGS.items() if k not in given]
  os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()

# A hub name fails at once instead of after 23 s of retries, and nothing that a
# person has cached at home can make a test pass.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the folder
  os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="quantlab-hf-")
  atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

os.environ["MPLBACKEND"] = "Agg"  # no window

# Compiled programs outlive the run and are shared by the workers and by the
# programs that tests start. JAX_ENABLE_COMPILATION_CACHE=0 turns it off.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_ROOT / ".cache/jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis  # noqa: E402
import jax  # noqa: E402

from quantlab.experiments import programs  # noqa: E402

# Broadcasting [N] against [K, N] by accident is the commonest silent bug of
# per-channel code. Not set in the environment: programs that a test starts run
# as a user would run them.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_runtest_teardown(item, nextitem):
  """Keeps a worker from running out of room for compiled programs."""
  if nextitem is None or nextitem.path != item.path:
    programs.release()


# Traces and programs are many objects and little garbage.
gc.set_threshold(50_000)

# Examples of new shapes compile: no deadline, and few of them.
# Derandomized, so that a failure is the same one for everybody.
hypothesis.settings.register_profile(
  "quantlab", deadline=None, derandomize=True, max_examples=10
)
hypothesis.settings.load_profile("quantlab")

# The notebooks' sources run as notebooks, not as doctest modules.
collect_ignore_glob = ["colab/*.py"]
if importlib.util.find_spec("torch") is None:  # an extra
  collect_ignore_glob.append("quantlab/experiments/bench/steps_torch.py")
