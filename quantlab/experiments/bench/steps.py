"""Speed of training steps, float and quantized.

PyTorch's learnable fake quantization is measured beside them where it is
installed.
"""

from collections.abc import Iterator
import importlib.util

import jax
import numpy as np

import quantlab as ql
from quantlab.experiments import train
from quantlab.experiments.bench import timing
from quantlab.models import cnn

_TENSOR = {"exact_zero": True, "granularity": ql.per_tensor}
_RTN8 = ql.rtn(8, symmetric=True, granularity=ql.per_tensor)
_HINDSIGHT8 = ql.rtn(8, observer=ql.ema(), **_TENSOR)
_WAYS = {
  "float": train.NOTHING,
  "LSQ+ W4A4": train.Plans(
    ql.by_path([("kernel", ql.lsq(4, start=ql.three_sigma)), ("", ql.keep())]),
    ql.by_path([("(conv|head)/in$", ql.lsq_plus(4)), ("", ql.keep())]),
  ),
  "in-hindsight W8A8G8": train.Plans(
    ql.by_path([("kernel", _RTN8), ("", ql.keep())]),
    ql.by_path([("(conv|head)/in$", _HINDSIGHT8), ("", ql.keep())]),
    ql.by_path(
      [
        (
          "(conv|head)/out$",
          ql.rtn(8, observer=ql.ema(), stochastic=True, **_TENSOR),
        ),
        ("", ql.keep()),
      ]
    ),
  ),
  "current ranges, W8A8": train.Plans(
    ql.by_path([("kernel", _RTN8), ("", ql.keep())]),
    ql.by_path([("(conv|head)/in$", ql.rtn(8, **_TENSOR)), ("", ql.keep())]),
  ),
}


def cases(
  network: str, *, batch: int = 128, size: int = 32
) -> Iterator[timing.Case]:
  """Training steps of a classifier of `[batch, size, size, 3]` images.

  Args:
    network: a key of `models.cnn.NETWORKS`.
    batch: images of a step.
    size: their sides.

  Raises:
    ValueError: there is no such network.
  """
  if network not in cnn.NETWORKS:
    raise ValueError(f"{network=} is none of {', '.join(cnn.NETWORKS)}")
  model = cnn.NETWORKS[network]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, size, size, 3), np.float32)
  labels = np.arange(batch) % model.classes
  variables = jax.jit(model.init)(jax.random.key(1), x)
  optimizer = train.separate(train.sgd(100), train.sgd(100))
  for name, plans in _WAYS.items():
    training = train.start(model, variables, optimizer, plans, (x, labels))
    update = train.step(model, optimizer, plans)
    yield timing.Case(
      f"{network}, {name}",
      lambda update=update, training=training: update(training, x, labels),
      batch,
    )
  if network == "resnet8" and importlib.util.find_spec("torch"):
    from quantlab.experiments.bench import steps_torch

    for name, step in steps_torch.steps(batch, size):
      yield timing.Case(f"{network}, {name}", step, batch)
