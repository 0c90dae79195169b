import importlib

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab import checkpoint
from quantlab.data import sound
from quantlab.models import denoiser, stft
from tests import draws


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("denoise")
  model = denoiser.TinyDenoiser("gru", 4)
  x = jnp.zeros((1, 2, stft.BINS))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  checkpoint.save(folder / "float/params", draws.like(shapes, 0.1))
  tone = 0.3 * np.sin(np.arange(6000) / 5)
  sound.write(folder / "noisy.wav", tone)
  sound.write(folder / "fast.wav", tone, rate=24_000)
  return folder


def _launch(folder, *arguments):
  launcher = importlib.import_module("launch.denoise")
  flags.FLAGS.unparse_flags()
  flags.FLAGS(["denoise", f"--checkpoint={folder}/float", *arguments])
  launcher.main(["denoise"])


def test_a_file_is_enhanced(folder, tmp_path, capsys):
  output = tmp_path / "clean.wav"
  arguments = f"--output={output}", f"--workdir={tmp_path / 'work'}"
  _launch(folder, f"--input={folder}/noisy.wav", "--noresample", *arguments)
  said = capsys.readouterr().out
  assert f"{output}: enhanced" in said
  assert "0.38 s of sound" in said
  assert (tmp_path / "work/clean.png").exists()
  assert len(sound.read(output)) == 6000
  with pytest.raises(SystemExit, match=r"fast\.wav: has 24000 .* not 16000"):
    _launch(folder, f"--input={folder}/fast.wav", "--noresample", *arguments)
  _launch(folder, f"--input={folder}/fast.wav", "--resample", *arguments)
  assert len(sound.read(output)) == 4000
