"""Prints which range estimator suits which tensor, as in docs/ranges.md.

python -m launch.ranges
"""

from absl import app, logging

from quantlab.experiments import ranges


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"no flag: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)  # jax's
  ranges.show()


if __name__ == "__main__":
  app.run(main)
