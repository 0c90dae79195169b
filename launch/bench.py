"""Speed on this machine, as ratios in one run.

python -m launch.bench                  # quantizers of a 4096 x 4096 matrix
python -m launch.bench --size=1024 --only=rtn,icquant --out=bench.json
python -m launch.bench --steps=resnet8  # training steps, float and quantized
"""

import json
import sys

from absl import app, flags, logging

from quantlab.experiments import bench

_SIZE = flags.DEFINE_integer("size", 4096, "Rows and columns of the matrix.")
_STEPS = flags.DEFINE_string("steps", None, "Time steps of this network.")
_BATCH = flags.DEFINE_integer("batch", 128, "Images of a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds; the median counts.")
_ONLY = flags.DEFINE_list("only", [], "Names, or starts of names, to run.")
_OUT = flags.DEFINE_string("out", None, "A JSON file for the results.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"no flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)  # jax's
  if _STEPS.value:
    cases = bench.steps(_STEPS.value, batch=_BATCH.value)
  else:
    cases = bench.quantizers(_SIZE.value)
  try:
    results = bench.run(cases, rounds=_ROUNDS.value, only=_ONLY.value)
  except ValueError as error:
    sys.exit(f"error: {error}")
  bench.show(results)
  if _OUT.value:
    with open(_OUT.value, "w", encoding="utf-8") as file:
      json.dump(results, file, indent=1)


if __name__ == "__main__":
  app.run(main)
