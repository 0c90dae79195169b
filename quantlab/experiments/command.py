"""What the commands that run a config in a folder have in common."""

from collections.abc import Callable
import pathlib
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from quantlab.experiments import configs, flag, progress, workdir

# New entries are accepted: the job checks every name, and lists what is known.
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "What to run; --config.a.b=c sets an entry.",
  lock_config=False,
  accept_new_attributes=True,
)


def go(
  argv: list[str],
  run: Callable[[Any, pathlib.Path], Any],
  log: str,
  instead: Callable[[Any], bool] = lambda config: False,
) -> None:
  """Runs a job as the flags say; what a person can mend is one line.

  Args:
    argv: what the flags have left.
    run: the job, of a config as plain data and a folder.
    log: name of the log in the folder.
    instead: does something without a folder, if it was asked for.
  """
  logging.set_verbosity(logging.WARNING)  # jax's; ours is `progress.log_to`
  try:
    if len(argv) > 1:
      raise configs.InputError(f"no flag: {' '.join(argv[1:])}")
    with configs.explained():  # a file that is not there
      config = configs.plain(_CONFIG.value)
    if instead(config):
      return
    if not flag.WORKDIR.value:
      raise configs.InputError("--workdir is missing")
    folder = workdir.Workdir(flag.WORKDIR.value)
    with progress.log_to(folder.root / log):
      run(config, folder.root)
  except (configs.InputError, FloatingPointError) as error:
    sys.exit(f"error: {error}")


def start(main: Callable[[list[str]], None]) -> None:
  """Reads the flags and runs `main`."""
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    return app.parse_flags_with_usage(argv)
  except (KeyError, OSError) as error:  # an unknown section, no such file
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    sys.exit(f"error: --config: {' '.join(text.split())}")
