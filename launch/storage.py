"""Measures which stored part of which format a wrong bit hurts.

python -m launch.storage --config=configs/randbet/storage_study.py \
  --workdir=runs/storage

A run that is killed goes on at the next format.
"""

from quantlab.experiments import command
from quantlab.experiments.faults import storage


def main(argv: list[str]) -> None:
  command.go(argv, storage.run, "storage.log")


if __name__ == "__main__":
  command.start(main)
