"""Quantizes a pretrained model in all ways of a config, and reports.

python -m launch.ptq --config=configs/ptq/minilm.py --workdir=runs/ptq-minilm
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from quantlab.experiments import configs, progress, ptq, workdir

# New entries are accepted: the job checks every name, and lists what is known.
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "What to run; --config.a.b=c sets an entry.",
  lock_config=False,
  accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder for all results.")
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what would be stored, and stop."
)


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # jax's; ours is `progress.log_to`
  try:
    if len(argv) > 1:
      raise configs.InputError(f"no flag: {' '.join(argv[1:])}")
    with configs.explained():  # a file that is not there
      config = configs.plain(_CONFIG.value)
    if _DRY_RUN.value:
      ptq.dry_run(config)
      return
    if not _WORKDIR.value:
      raise configs.InputError("--workdir is missing")
    folder = workdir.Workdir(_WORKDIR.value)
    with progress.log_to(folder.root / "ptq.log"):
      ptq.run(config, folder.root)
  except configs.InputError as error:
    sys.exit(f"error: {error}")


def parse(argv: list[str]) -> list[str]:
  try:
    return app.parse_flags_with_usage(argv)
  except (KeyError, OSError) as error:  # an unknown section, no such file
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    sys.exit(f"error: --config: {' '.join(text.split())}")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=parse)
