"""Quantizes a pretrained encoder and reports.

python -m launch.ptq --config=configs/ptq/minilm.py --workdir=runs/ptq-minilm
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from quantlab.experiments import configs, progress, ptq, workdir

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "What to run; --config.a.b=c changes an entry."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for all results.")
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what would be stored, and stop."
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)  # jax's; ours is `progress.log_to`
  try:
    if _DRY_RUN.value:
      ptq.dry_run(_CONFIG.value)
      return
    if not _WORKDIR.value:
      raise configs.InputError("--workdir is missing")
    folder = workdir.Workdir(_WORKDIR.value)
    with progress.log_to(folder.root / "ptq.log"):
      ptq.run(_CONFIG.value, folder.root)
  except configs.InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
