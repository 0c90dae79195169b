"""Prints the memory traffic of static and of dynamic ranges.

python -m launch.traffic
"""

from absl import app

from quantlab.experiments import traffic


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"no flag: {' '.join(argv[1:])}")
  traffic.show()


if __name__ == "__main__":
  app.run(main)
