"""Speed on this machine, as ratios in one run.

python -m launch.bench --size=1024 --only=rtn,icquant   # quantizers of a matrix
python -m launch.bench steps            # training steps, float and quantized
python -m launch.bench kernels          # products with packed weights
python -m launch.bench generate         # whole models from packed weights
python -m launch.bench tune --out=quantlab/kernels/tables/nvidia_h200.json
"""

import json
import sys

from absl import app, flags, logging

from quantlab.experiments import generation
from quantlab.experiments.bench import kernels, quantizers, steps, timing, tune

_SIZE = flags.DEFINE_integer("size", 4096, "quantizers: of the matrix.")
_NETWORK = flags.DEFINE_string("network", "resnet8", "steps: the network.")
_BATCH = flags.DEFINE_integer("batch", 128, "steps: images of one.")
_SHAPES = flags.DEFINE_list("shapes", ["4096x4096"], "kernels: K x N of each.")
_ROWS = flags.DEFINE_string("rows", "1,16", "kernels: rows of activations.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds; the median counts.")
_ONLY = flags.DEFINE_list("only", [], "Names, or starts of names, to run.")
_OUT = flags.DEFINE_string("out", None, "A JSON file for the results.")


def _measured(suite, **options):
  if suite == "generate":
    return generation.run(rounds=_ROUNDS.value), generation.show
  if suite == "kernels":
    shapes = [kernels.numbers(text, "x") for text in _SHAPES.value]
    rows = kernels.numbers(_ROWS.value, ",")
    return kernels.run(shapes, rows, **options), kernels.show
  if suite == "tune":
    return tune.run(**options), tune.show
  cases = quantizers.cases(_SIZE.value)
  if suite == "steps":
    cases = steps.cases(_NETWORK.value, batch=_BATCH.value)
  return timing.run(cases, **options), timing.show


def main(argv: list[str]) -> None:
  suites = ("quantizers", "steps", "kernels", "generate", "tune")
  suite, *rest = argv[1:] or suites[:1]
  if rest or suite not in suites:
    raise app.UsageError(f"{argv[1:]} is none of {', '.join(suites)}")
  logging.set_verbosity(logging.WARNING)  # jax's
  try:
    results, show = _measured(suite, rounds=_ROUNDS.value, only=_ONLY.value)
  except ValueError as error:
    sys.exit(f"error: {error}")
  show(results)
  if _OUT.value:
    with open(_OUT.value, "w", encoding="utf-8") as file:
      json.dump(results, file, indent=1)


if __name__ == "__main__":
  app.run(main)
