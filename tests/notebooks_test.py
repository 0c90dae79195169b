"""Each notebook holds the cells of the .py file beside it, and nothing else."""

import pathlib

import jupytext
import nbformat
import pytest

COLAB = pathlib.Path(__file__).parent.parent / "colab"
SOURCES = sorted(COLAB.glob("*.py"))


def generated(text):
  """The notebook that jupytext makes of a source."""
  notebook = jupytext.reads(text, fmt="py:percent")
  return nbformat.reads(jupytext.writes(notebook, fmt="ipynb"), as_version=4)


def differences(text, notebook):
  """Describes how a notebook differs from what its source generates.

  The ids of cells, which jupytext draws at random, do not count.
  """
  want = generated(text)
  found = []
  if notebook.metadata != want.metadata:
    found.append(f"metadata: {notebook.metadata} instead of {want.metadata}")
  if len(notebook.cells) != len(want.cells):
    found.append(f"{len(notebook.cells)} cells instead of {len(want.cells)}")
  for i, (cell, from_source) in enumerate(
    zip(notebook.cells, want.cells, strict=False)
  ):
    keys = sorted(set(cell) | set(from_source))
    found += [
      f"cell {i}: {key} is {cell.get(key)!r}"
      for key in keys
      if key != "id" and cell.get(key) != from_source.get(key)
    ]
  return found


def orphans(names):
  """The sources without a notebook, and the notebooks without a source."""
  stems = {
    ending: {n.removesuffix(ending) for n in names if n.endswith(ending)}
    for ending in (".py", ".ipynb")
  }
  return sorted(stems[".py"] ^ stems[".ipynb"])


def test_each_source_has_its_notebook_and_the_reverse():
  assert SOURCES
  assert orphans([file.name for file in COLAB.iterdir()]) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda file: file.stem)
def test_notebook_is_what_its_source_generates(source):
  notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == "python3"
  found = differences(source.read_text("utf-8"), notebook)
  assert found == [], f"run: jupytext --update --to ipynb {source}"


TEXT = """# %% [markdown]
# A title

# %%
x = 1

# %%
x + 1
"""


def test_a_generated_notebook_does_not_differ():
  again = generated(TEXT)
  assert [cell.id for cell in again.cells] != [
    cell.id for cell in generated(TEXT).cells
  ]
  assert differences(TEXT, again) == []


@pytest.mark.parametrize(
  "plant",
  [
    lambda cells: cells[1].update(source="x = 2"),
    lambda cells: cells[0].update(cell_type="raw"),
    lambda cells: cells[1].update(execution_count=1),
    lambda cells: cells[1].outputs.append(
      nbformat.v4.new_output("stream", text="1")
    ),
    lambda cells: cells[2].metadata.update(tags=["raises-exception"]),
    lambda cells: cells.pop(),
    lambda cells: cells.append(nbformat.v4.new_code_cell("y = 1")),
    lambda cells: cells.reverse(),
  ],
)
def test_planted_difference_is_found(plant):
  notebook = generated(TEXT)
  plant(notebook.cells)
  assert differences(TEXT, notebook)


def test_planted_kernel_is_found():
  notebook = generated(TEXT)
  notebook.metadata["kernelspec"] = {"name": "other"}
  assert differences(TEXT, notebook)


@pytest.mark.parametrize(
  "names", [["01_a.py"], ["01_a.ipynb"], ["01_a.py", "02_a.ipynb"]]
)
def test_planted_orphan_is_found(names):
  assert orphans(names)


def test_other_files_are_no_orphans():
  assert orphans(["a.py", "a.ipynb", "README.md"]) == []
