"""Imports flow downwards only, and the tree holds nothing private.

The layers are data (`LAYERS`); the checks are functions of source text, so that
each of them is itself tested on a planted fault.
"""

import ast
from collections.abc import Iterator
import graphlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

from packaging import requirements
import pytest

ROOT = pathlib.Path(__file__).parent.parent

# What each part may import besides itself. `quantlab` is quantlab/__init__.py,
# where the public names are listed once.
_LIBRARY = (
  "core",
  "transforms",
  "methods",
  "kernels",
  "apply",
  "checkpoint",
  "hub",
  "models",
)
LAYERS = {
  "core": (),
  "transforms": ("core",),
  "methods": ("core", "transforms"),
  "kernels": ("core",),
  "apply": ("core", "kernels", "transforms"),
  "checkpoint": ("core",),
  "hub": (),
  "models": ("hub",),
  "data": ("hub",),
  "experiments": ("quantlab", *_LIBRARY, "data"),
  "quantlab": (*_LIBRARY, "data", "experiments"),
  "launch": ("quantlab", *_LIBRARY, "data", "experiments"),
  "configs": ("quantlab", *_LIBRARY, "data", "experiments"),
}

# Packages that a part is limited to, where it is limited.
OUTSIDE = {"core": {"jax", "numpy"}}

# Slow to import and needed by few callers: imported where they are used.
LAZY = {
  "PIL",
  "datasets",
  "matplotlib",
  "orbax",
  "safetensors",
  "pesq",
  "pystoi",
  "sklearn",
  "soundfile",
  "tokenizers",
}

LAUNCHER_LINES = 60

# What no file may hold: hosts of package indexes and folders of one machine.
PRIVATE = {
  "package index": re.compile(r"py(?:pi\.org|thonhosted)|index-url[ =]+\S*:/"),
  "machine path": re.compile(r"(?<![\w.~})-])/(?:work|root|home|Users)/\w"),
}


def sources() -> dict[str, str]:
  """Maps module name to text: library, launchers and configs."""
  files = [
    file
    for folder in ("quantlab", "launch", "configs")
    for file in sorted((ROOT / folder).rglob("*.py"))
  ]
  return {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text(
      "utf-8"
    )
    for file in files
  }


def part(module: str) -> str | None:
  """The part that a module is in: `core`, `launch`; None if not ours.

  Modules of quantlab that have no layer are named in full.
  """
  first, *rest = module.removesuffix(".__init__").split(".")
  if first in ("launch", "configs"):
    return first
  if first != "quantlab":
    return None
  return rest[0] if rest else "quantlab"


def imports(
  module: str, text: str, known: frozenset[str] = frozenset()
) -> Iterator[tuple[str, bool, int]]:
  """Yields (imported module, runs on import, line) wherever it is imported.

  Args:
    module: dotted name of the file, with `.__init__` for a package.
    text: its source.
    known: names of the modules of the tree: `from quantlab import core` is an
      import of `quantlab.core`, `from quantlab import fit` of `quantlab`.
  """
  tree = ast.parse(text, filename=module)
  deferred = {
    id(node)
    for scope in ast.walk(tree)
    if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    or (isinstance(scope, ast.If) and "TYPE_CHECKING" in ast.dump(scope.test))
    for node in ast.walk(scope)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      package = module.split(".")[: -node.level] if node.level else []
      base = ".".join([*package, *filter(None, [node.module])])
      names = []
      for alias in node.names:
        full = f"{base}.{alias.name}"
        names.append(full if {full, f"{full}.__init__"} & known else base)
    else:
      continue
    for name in names:
      yield name, id(node) not in deferred, node.lineno


def upward(files: dict[str, str]) -> list[str]:
  """Describes each import that `LAYERS` and `OUTSIDE` do not allow."""
  known, found = frozenset(files), []
  for module, text in files.items():
    source = part(module)
    if source not in LAYERS:
      found.append(f"{module}: no layer; add {source!r} to LAYERS")
      continue
    for name, _, line in imports(module, text, known):
      target = part(name)
      if target is None:
        package = name.split(".")[0]
        limits = OUTSIDE.get(source, {package}) | sys.stdlib_module_names
        allowed = package in limits
      else:
        allowed = target == source or target in LAYERS[source]
      if not allowed:
        found.append(f"{module}:{line} imports {name}: upward from {source}")
  return found


def parts_graph(files: dict[str, str]) -> dict[str, set[str]]:
  """Maps each part to the other parts that it imports."""
  known, graph = frozenset(files), {}
  for module, text in files.items():
    source = part(module)
    targets = {part(name) for name, _, _ in imports(module, text, known)}
    graph.setdefault(source, set()).update(targets - {None, source})
  return graph


def eager(files: dict[str, str]) -> list[str]:
  """Describes each import of a `LAZY` package that runs with the module."""
  return [
    f"{module}:{line} imports {name} at module level"
    for module, text in files.items()
    if module.startswith("quantlab")
    for name, runs, line in imports(module, text)
    if runs and name.split(".")[0] in LAZY
  ]


def private(name: str, text: str) -> list[str]:
  """Describes each line that names a package index or a machine's folder."""
  found = [
    f"{name}:{number}: {kind}: {line.strip()[:80]}"
    for number, line in enumerate(text.splitlines(), 1)
    for kind, pattern in PRIVATE.items()
    if pattern.search(line)
  ]
  if name.endswith(".lock") and "://" in text:
    found.append(f"{name}: a lock names no address; run `make lock`")
  return found


def test_imports_flow_downwards():
  files = sources()
  assert "quantlab.__init__" in files
  assert upward(files) == []


def test_parts_have_no_cycle():
  list(graphlib.TopologicalSorter(parts_graph(sources())).static_order())


@pytest.mark.parametrize(
  ("module", "text"),
  [
    ("quantlab.core.base", "from quantlab.transforms import fit"),
    ("quantlab.core.base", "from quantlab import transforms"),
    ("quantlab.core.base", "from ..transforms import fit"),
    ("quantlab.core.base", "import quantlab as ql"),
    ("quantlab.core.base", "import flax"),
    ("quantlab.core.base", "def f():\n  import quantlab.methods.rtn"),
    ("quantlab.transforms.fit", "from quantlab.methods import rtn"),
    ("quantlab.methods.rtn", "from quantlab.kernels import ops"),
    ("quantlab.kernels.ops", "from quantlab.methods import rtn"),
    ("quantlab.apply", "from quantlab import methods"),
    ("quantlab.models.bert", "from quantlab.core import base"),
    ("quantlab.data.digits", "from quantlab.models import bert"),
    ("quantlab.experiments.ptq", "from launch import ptq"),
    ("quantlab.__init__", "import configs.ptq.minilm"),
    ("quantlab.misc", ""),
    ("launch.ptq", "from configs.ptq import minilm"),
    ("configs.ptq.minilm", "import launch.ptq"),
  ],
)
def test_planted_upward_import_is_found(module, text):
  rooms = {f"quantlab.{room}.__init__": "" for room in LAYERS}
  assert len(upward({**rooms, module: text})) == 1


@pytest.mark.parametrize(
  ("module", "text"),
  [
    ("quantlab.core.base", "import dataclasses, jax.numpy, numpy as np"),
    ("quantlab.core.base", "from quantlab.core import bits"),
    ("quantlab.core.base", "from . import bits"),
    ("quantlab.methods.rtn", "from quantlab import transforms"),
    ("quantlab.__init__", "from quantlab import methods"),
    ("quantlab.__init__", "from .core import base"),
    ("quantlab.experiments.ptq", "import quantlab as ql"),
    ("launch.ptq", "from quantlab.experiments import ptq"),
  ],
)
def test_downward_import_is_allowed(module, text):
  rooms = {f"quantlab.{room}.__init__": "" for room in LAYERS}
  assert upward({**rooms, module: text}) == []


def test_planted_cycle_is_found():
  graph = parts_graph(
    {
      "quantlab.__init__": "import quantlab.experiments.ptq",
      "quantlab.experiments.ptq": "import quantlab as ql",
    }
  )
  with pytest.raises(graphlib.CycleError):
    graphlib.TopologicalSorter(graph).prepare()


def test_slow_packages_are_imported_where_used():
  assert eager(sources()) == []


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("import datasets", 1),
    ("try:\n  import orbax.checkpoint\nexcept ImportError:\n  pass", 1),
    ("class A:\n  from matplotlib import pyplot", 1),
    ("def f():\n  import datasets", 0),
    ("import typing\nif typing.TYPE_CHECKING:\n  import datasets", 0),
  ],
)
def test_planted_eager_import_is_found(text, count):
  assert len(eager({"quantlab.data.digits": text})) == count


def test_import_quantlab_is_light():
  code = "import json, sys, quantlab; print(json.dumps(list(sys.modules)))"
  run = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    check=True,
    cwd=ROOT,
    text=True,
  )
  loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
  assert loaded & LAZY == set()


def test_locks_pin_what_the_project_asks_for():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
    "project"
  ]
  extras = project["optional-dependencies"]
  asked = map(
    requirements.Requirement,
    project["dependencies"] + extras["dev"] + extras["crosscheck"],
  )
  lock = (ROOT / "requirements.lock").read_text("utf-8")
  # One name may have several pins, each for some versions of Python.
  pins = re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)
  for want in asked:
    pinned = [version for name, version in pins if name == want.name]
    assert pinned, f"{want} is not in requirements.lock; run `make lock`"
    assert all(want.specifier.contains(version) for version in pinned), want


def test_launchers_are_short():
  lines = {
    name: text.count("\n")
    for name, text in sources().items()
    if name.startswith("launch.")
  }
  assert {n: c for n, c in lines.items() if c > LAUNCHER_LINES} == {}


def test_tree_holds_nothing_private():
  if shutil.which("git") is None or not (ROOT / ".git").exists():
    pytest.skip("not a git checkout")
  listing = subprocess.run(
    # A checkout may belong to another user than the one who tests it.
    [
      *("git", "-c", "safe.directory=*", "ls-files", "-z"),
      *("--cached", "--others", "--exclude-standard"),
    ],
    capture_output=True,
    check=True,
    cwd=ROOT,
    text=True,
  )
  found = []
  for name in filter(None, listing.stdout.split("\0")):
    data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
    if b"\0" not in data[:1024]:  # text
      found += private(name, data.decode(errors="replace"))
  assert found == []


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("a.md", "see /" + "work/notes.md"),
    ("a.py", 'open("/' + 'root/x")'),
    ("a.toml", "https://" + "pypi" + ".org/simple"),
    ("requirements.lock", "--find-links file:" + "//x"),
  ],
)
def test_planted_private_line_is_found(name, text):
  assert private(name, text)
