"""Compiled programs of a long run."""

import pathlib

import jax

_MAPS = pathlib.Path("/proc/self/maps")
_LIMIT = pathlib.Path("/proc/sys/vm/max_map_count")


def release() -> bool:
  """Lets go of compiled programs when they could exhaust the process.

  Each keeps several memory maps, of which Linux grants a process 65 530 unless
  told otherwise; the compiler crashes where there is no other. What is needed
  again compiles again.

  Returns:
    Whether it did.
  """
  if not _MAPS.exists():
    return False
  if 2 * _MAPS.read_bytes().count(b"\n") < int(_LIMIT.read_text()):
    return False
  jax.clear_caches()
  return True
