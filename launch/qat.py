"""Trains a model in all quantized ways of a config, and reports.

python -m launch.qat --config=configs/qat/digits.py --workdir=runs/qat-digits

A run that is killed goes on at its last save when the command is given again;
SIGTERM saves first.
"""

import pathlib
from typing import Any

from quantlab.experiments import command, qat


def run(config: Any, folder: pathlib.Path) -> None:
  try:
    print(qat.show(qat.run(config, folder)))
  except qat.Stopped as stopped:
    print(stopped)


def main(argv: list[str]) -> None:
  command.go(argv, run, "qat.log")


if __name__ == "__main__":
  command.start(main)
