"""Quantizes a pretrained model in all ways of a config, and reports.

python -m launch.ptq --config=configs/ptq/minilm.py --workdir=runs/ptq-minilm
"""

from typing import Any

from absl import flags

from quantlab.experiments import command, ptq

_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what would be stored, and stop."
)


def dry_run(config: Any) -> bool:
  if _DRY_RUN.value:
    ptq.dry_run(config)
  return _DRY_RUN.value


def main(argv: list[str]) -> None:
  command.go(argv, ptq.run, "ptq.log", dry_run)


if __name__ == "__main__":
  command.start(main)
