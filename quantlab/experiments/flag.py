"""The flag that all commands share."""

from absl import flags

WORKDIR = flags.DEFINE_string("workdir", None, "The folder for all results.")
