"""Prints what the methods do to Gaussian weights, beside what theory says.

python -m launch.gaussian
"""

from absl import app, logging

from quantlab.experiments import gaussian


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"no flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)  # jax's
  gaussian.show()


if __name__ == "__main__":
  app.run(main)
