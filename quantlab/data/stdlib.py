"""The sources of the standard library, and their docstrings."""

import ast
from collections.abc import Iterator
import functools
import pathlib
import sys
import sysconfig
import tokenize
from typing import Any
import warnings

# Tests, demos and a tool: not what a reader looks documentation up in.
_SKIP = {"idlelib", "lib2to3", "test", "tests", "turtledemo"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings() -> Iterator[tuple[str, str]]:
  """Yields the first line and the rest of every public docstring.

  Sources are parsed, not imported, in the order of their names. Either text
  may be empty; white space is single blanks.

  Raises:
    FileNotFoundError: this Python comes without its sources.

  Example:
    >>> next(docstrings())[0]  # the module `abc`
    'Abstract Base Classes (ABCs) according to PEP 3119.'
  """
  for file in _files():
    yield from _split(file)


def sources() -> Iterator[str]:
  """Yields the text of every public module, in the order of their names.

  One of them, `pydoc_data.topics`, is the reference manual of the language.

  Raises:
    FileNotFoundError: this Python comes without its sources.

  Example:
    >>> next(sources()).splitlines()[0]  # the module `abc`
    '# Copyright 2007 Google, Inc. All Rights Reserved.'
  """
  for file in _files():
    with tokenize.open(file) as text:  # in the encoding that it declares
      yield text.read()


def _files() -> list[pathlib.Path]:
  """The files of the public modules of the standard library."""
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  files = list(_sources(root))
  if not files:
    raise FileNotFoundError(f"{root}: no sources of the standard library")
  return files


def _sources(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for name in sorted(sys.stdlib_module_names - _SKIP):
    if (root / f"{name}.py").is_file():
      files = [root / f"{name}.py"]
    else:
      files = sorted((root / name).rglob("*.py"))
    for file in files:
      parts = file.relative_to(root).with_suffix("").parts
      private = any(p.startswith("_") and p != "__init__" for p in parts)
      if not private and not _SKIP.intersection(parts):
        yield file


@functools.cache  # seconds for all, and a run reads several splits
def _split(file: pathlib.Path) -> list[tuple[str, str]]:
  """First line and body of a file's public docstrings."""
  with warnings.catch_warnings(action="ignore"):  # Invalid escapes.
    tree = ast.parse(file.read_bytes())
  found = []
  for node in _public(tree):
    query, _, document = (ast.get_docstring(node) or "").partition("\n")
    found.append((" ".join(query.split()), " ".join(document.split())))
  return found


def _public(node: Any) -> Iterator[Any]:
  yield node
  for child in node.body:
    if isinstance(child, ast.ClassDef):
      if not child.name.startswith("_"):
        yield from _public(child)
    elif isinstance(child, _FUNCTIONS) and not child.name.startswith("_"):
      yield child
