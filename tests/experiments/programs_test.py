import jax
import jax.numpy as jnp
import pytest

from quantlab.experiments import programs


@pytest.fixture(name="limit")
def _limit(tmp_path, monkeypatch):
  def write(limit, maps):
    for name, text in (("_LIMIT", f"{limit}\n"), ("_MAPS", "map\n" * maps)):
      (tmp_path / name).write_text(text)
      monkeypatch.setattr(programs, name, tmp_path / name)

  return write


@pytest.mark.parametrize(("maps", "many"), [(45, False), (55, True)])
def test_releases_programs_where_there_are_many(limit, maps, many):
  double = jax.jit(lambda x: 2 * x)
  double(jnp.ones(3))
  limit(100, maps)
  assert programs.release() == many
  assert double._cache_size() == (not many)
  assert double(jnp.ones(3)).tolist() == [2, 2, 2]


def test_does_nothing_where_nothing_is_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(programs, "_MAPS", tmp_path / "none")
  assert not programs.release()
