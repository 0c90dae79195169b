import importlib
import sys

from absl import flags
import pytest


@pytest.fixture(name="launch")
def _launch(monkeypatch):
  """Runs a launcher in this process: `launch(name, config, *flags)`."""

  def launch(name, config, *arguments):
    launcher = importlib.import_module(f"launch.{name}")
    argv = [name, f"--config={config}", "--workdir=", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # config_flags reads it itself
    flags.FLAGS.unparse_flags()
    for flag in [n for n in flags.FLAGS if n.startswith("config.")]:
      delattr(flags.FLAGS, flag)  # made by the call before
    flags.FLAGS(argv)
    launcher.main([name])

  return launch


@pytest.fixture(name="launcher")
def _launcher():
  """Imports a launcher, and forgets its flags: others have some of the name."""
  loaded = []

  def launcher(name):
    loaded.append(f"launch.{name}")
    return importlib.import_module(loaded[-1])

  yield launcher
  for name in loaded:
    # Flags of an earlier import are still listed.
    for flag in {
      flag.name for flag in flags.FLAGS.flags_by_module_dict()[name]
    }:
      delattr(flags.FLAGS, flag)
    del sys.modules[name]
