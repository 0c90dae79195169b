"""What a task is: all that the job needs to know about a model and its data.

Shape letters: B batch, R outputs of a whole data set.
"""

from collections.abc import Callable
import pathlib
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np

from quantlab.experiments import progress

Array = jax.Array
Params = Any


class Metric(NamedTuple):
  """A score, and how reports show it.

  Attributes:
    key: its name in a row of results.
    heading: of its column in the table.
    form: format of the table's cells.
    axis: what the plot writes on its axis; empty if the plot leaves it out.
    falls: whether less is better.
  """

  key: str
  heading: str
  form: str = "{:.3f}"
  axis: str = ""
  falls: bool = False


class Batch(NamedTuple):
  """What a model reads at once.

  Attributes:
    args: the model's arguments, arrays of B.
    rows: which rows of all outputs these are, `[B]` or shorter; outputs beyond
      belong to filler.
    labels: what a loss holds the outputs against; () where it needs nothing.
  """

  args: tuple[Any, ...]
  rows: np.ndarray
  labels: Any = ()


class Task(NamedTuple):
  """A model with its data.

  Attributes:
    model: `model.apply({"params": params}, *batch.args)` runs it.
    params: its float parameters.
    head: `head(y, *batch.args)`: what is kept of the model's output y, an
      array of B rows.
    batches: what is evaluated.
    compare: scores `[R, ...]` outputs beside those of the float model.
    loss: `loss(params, batch)`: what a changed parameter should not raise.
    spare: `spare(n)`: n batches of what is not evaluated, for calibration.
      Raises `ValueError` where the data have not that much.
    sha256: of what is evaluated.
    source: where it comes from, for a report.
  """

  model: nn.Module
  params: Params
  head: Callable[..., Array]
  batches: progress.Items
  compare: Callable[[np.ndarray, np.ndarray], dict[str, float]]
  loss: Callable[[Params, Batch], Array]
  spare: Callable[[int], list[Batch]]
  sha256: str
  source: str


class Outline(NamedTuple):
  """A model before its weights are read.

  Attributes:
    model: it.
    params: `jax.ShapeDtypeStruct` for each parameter.
    args: the same for the arguments of a batch.
  """

  model: nn.Module
  params: Params
  args: tuple[Any, ...]


class Kind(NamedTuple):
  """How a config makes a task. The first two check a section's entries.

  Attributes:
    model: the section `model` as keyword arguments, annotated.
    data: the section `data`.
    outline: `outline(model, data)`, reading no weights.
    load: `load(model, data, place, track)`; what it has to compute first, such
      as a training, it keeps in the folder `place` and finds there again.
    metrics: what `Task.compare` returns, in the order of reports. The Pareto
      front that is printed is about the first.
  """

  model: Callable[..., Any]
  data: Callable[..., Any]
  outline: Callable[[Any, Any], Outline]
  load: Callable[[Any, Any, pathlib.Path, progress.Track], Task]
  metrics: tuple[Metric, ...]
