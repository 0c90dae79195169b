import functools
import json
import pathlib
import re

from absl import flags
import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
import pytest

from quantlab.experiments import aot, aot_counts, kernel_cases

_MODULE = "tests.launch.aot_test"

needs_packages = pytest.mark.skipif(bool(aot.missing()), reason=aot.missing())


# Of each target's kernels; the others are a study.
KERNELS = {
  "h200": (
    "triton, 4-bit, blocks of 128, M=16",
    "triton, ICQuant 2-bit",
    "mosaic_gpu, 2-bit, M=16",
  ),
  "v5e": ("mosaic_tpu, 3", "mosaic_tpu, ICQuant", "mosaic_tpu, 8", "ops.dot"),
  "v6e": ("mosaic_tpu, 4-bit, M", "mosaic_tpu, codebook"),
}


def _square(rows, columns, **options):
  """Keeps a block of `[rows, columns]` float32 in registers."""

  def body(x, y):
    y[...] = jax.lax.fori_loop(0, 100, lambda _, c: c * c + 1, x[...])

  shape = jax.ShapeDtypeStruct((rows, columns), jnp.float32)
  return pl.pallas_call(body, out_shape=shape, name="square", **options), (
    shape,
  )


def _first(rows):
  """Keeps a block of `[rows, 1024]` float32 in the memory of the kernel."""

  def body(x, y):
    y[...] = x[:8]

  shape = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
  f = pl.pallas_call(body, out_shape=shape, name="first")
  return f, (jax.ShapeDtypeStruct((rows, 1024), jnp.float32),)


def _product(depth):
  """Keeps two blocks of `[64, depth]` bfloat16 in shared memory."""

  def body(x, y):
    y[...] = triton.dot(x[...], x[...].T)

  shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  f = pl.pallas_call(
    body,
    out_shape=shape,
    name="product",
    compiler_params=triton.CompilerParams(num_warps=4),
  )
  return f, (jax.ShapeDtypeStruct((64, depth), jnp.bfloat16),)


def cases(target):
  """What the process of `aot.run` compiles."""
  found = {
    name: case
    for name, case in kernel_cases.cases(target).items()
    if name.startswith(KERNELS[target])
  }
  if target == "h200":
    one, four = (
      {"compiler_params": triton.CompilerParams(num_warps=n)} for n in (1, 4)
    )
    return found | {
      "fits": _square(8, 128, **four),
      "spills": _square(64, 128, **one),
      "product": _product(64),
      "too much memory": _product(2048),
    }
  return found | {
    "fits": _square(8, 128),
    "spills": _square(128, 1024),
    "too much memory": _first(2**16),
  }


@pytest.fixture(name="reports", scope="session")
def _reports():
  return functools.cache(lambda target: aot.run(target, _MODULE))


def test_lowers_without_packages():
  matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  lowered = aot.lower(lambda x: x @ x.T, (matrix,), "cuda")
  assert "dot_general" in lowered.as_text()
  assert "tpu_custom_call" in aot.lower(*_square(8, 128), "tpu").as_text()


def test_no_such_platform():
  with pytest.raises(ValueError, match="platform='cpu' is none of cuda, tpu"):
    aot.lower(*_square(8, 128), "cpu")


def test_no_such_target():
  with pytest.raises(ValueError, match="target='h100' is none of h200, v5e"):
    aot.run("h100", _MODULE)


def test_compiles_only_where_the_process_is_prepared():
  with pytest.raises(RuntimeError, match=r"only in a process that aot\.run"):
    aot.compile(*_square(8, 128), "v5e")


def test_says_what_is_missing(monkeypatch):
  monkeypatch.setattr(aot, "packages", lambda: None)
  with pytest.raises(RuntimeError, match="extra aot are not installed"):
    aot.run("h200", _MODULE)


@needs_packages
def test_packages_of_another_jax_are_refused(monkeypatch):
  monkeypatch.setattr(jax, "__version__", "0.1")
  with pytest.raises(RuntimeError, match=r"but jax is 0\.1"):
    aot.run("h200", _MODULE)


@needs_packages
@pytest.mark.parametrize("target", aot.TARGETS)
def test_compiles_and_counts(reports, target):
  counts = reports(target).counts
  (kernel,) = counts["fits"]
  assert kernel.kernel.startswith("square")
  assert kernel.spills == 0
  length = kernel.instructions if target == "h200" else kernel.bundles
  # 8 registers of a TPU, 8 numbers of each of 128 threads of a GPU.
  assert 8 < length < 1000


@needs_packages
def test_counts_of_a_gpu(reports):
  counts = reports("h200").counts
  (square,), (product,) = counts["fits"], counts["product"]
  assert 0 < square.loop < square.instructions
  assert 8 < square.registers < 64
  assert square.shared == 0
  assert product.shared == 2 * 64 * 64 * 2
  assert product.loop == 0


@needs_packages
@pytest.mark.parametrize("target", aot.TARGETS)
def test_faults_are_found(reports, target):
  report = reports(target)
  faults = report.faults()
  assert "RESOURCE_EXHAUSTED" in faults.pop("too much memory")
  (square,) = report.counts["spills"]
  assert square.spills > 0
  spills = {"spills": f"square spills {square.spills} bytes"}
  assert faults == (spills if target == "h200" else {})


def test_too_much_shared_memory_is_a_fault():
  kernel = aot_counts.GpuCounts("k", 9, 0, 8, 0, aot_counts.SHARED + 1)
  faults = aot_counts.Report({"a": [kernel]}, {}).faults()
  assert faults == {"a": "k: kernel.shared=232449 exceeds 232448"}


@needs_packages
def test_launcher(reports, launcher, tmp_path, monkeypatch, capsys):
  launch, report = launcher("aot"), reports("v5e")
  monkeypatch.setattr(aot, "run", lambda *_: report)
  out = tmp_path / "aot.json"
  flags.FLAGS.unparse_flags()
  flags.FLAGS(["aot", "--target=v5e", f"--out={out}"])
  with pytest.raises(SystemExit) as stop:
    launch.main(["aot"])
  assert stop.value.code == 1
  assert "v5e: too much memory: " in capsys.readouterr().out
  results = json.loads(out.read_text())
  assert results["versions"]["jax"] == jax.__version__
  assert results["targets"]["v5e"]["counts"]["fits"][0]["spills"] == 0


def test_lock_holds_the_plugin_of_each_jax():
  root = pathlib.Path(__file__).parents[2]
  pins = {
    name: set(re.findall(rf"^{name}==(\S+)", (root / lock).read_text(), re.M))
    for name, lock in (
      ("jax", "requirements.lock"),
      ("jax-cuda13-plugin", "requirements-aot.lock"),
      ("jax-cuda13-pjrt", "requirements-aot.lock"),
    )
  }
  assert pins["jax-cuda13-plugin"] == pins["jax-cuda13-pjrt"] == pins["jax"]


@needs_packages
@pytest.mark.parametrize("target", aot.TARGETS)
def test_kernels_compile_and_fit(reports, target):
  report = reports(target)
  ours = {
    name: kernels
    for name, kernels in report.counts.items()
    if name.startswith(KERNELS[target])
  }
  assert len(ours) == len(KERNELS[target])
  assert not report.faults().keys() & ours
  for longest, *_ in ours.values():
    assert "matmul" in longest.kernel or "mosaic" in longest.kernel


@needs_packages
@pytest.mark.study
@pytest.mark.parametrize("target", aot.TARGETS)
def test_every_kernel_compiles_and_fits(target):
  report = aot.run(target, kernel_cases.__name__)
  assert report.faults() == {}
  assert len(report.counts) > 10
