"""The table of docs/ranges.md is what its command prints."""

import pathlib

import pytest

import quantlab as ql
from quantlab.experiments import ranges

DOC = pathlib.Path(__file__).parents[2] / "docs" / "ranges.md"
ROWS = {
  cells[0].strip("`"): cells[1:]
  for cells in (
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in DOC.read_text("utf-8").splitlines()
    if line.startswith("| `")
  )
}


def test_rows_and_their_uses():
  choices = (*ranges.CHOICES, *ranges.OBSERVERS)
  assert {name: row[-1] for name, row in ROWS.items()} == {
    name: use for name, _, use in choices
  }


@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_numbers_on_weights(column):
  kind, bits = ranges.WEIGHTS[column // 2], ranges.BITS[column % 2]
  found = ranges.on_weights(ql.minmax, kind, bits)
  assert found == pytest.approx(float(ROWS["minmax"][column]), abs=0.1)


def test_a_number_on_activations():
  kind = "activations with outliers"
  found = ranges.on_activations(ql.extremes(), kind, 8)
  assert found == pytest.approx(float(ROWS["extremes()"][3]), abs=0.1)


def test_the_kinds_are_as_said():
  relu = ranges.draw("ReLU activations")
  assert float((relu == 0).mean()) == pytest.approx(0.8413, abs=0.005)
  outliers = abs(ranges.draw("activations with outliers")) > 6
  assert float(outliers.mean()) == pytest.approx(0.764e-3, rel=0.3)
