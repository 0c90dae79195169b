import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from quantlab.models import repvgg, repvgg_weights

CONFIG = repvgg.RepVGGConfig((4, 8), (1, 3), (2, 2), groups=2, classes=5)
# Input and output channels, stride and groups of each block.
BLOCKS = {
  "stem": (3, 4, 2, 1),
  "stages.0.0": (4, 8, 2, 1),
  "stages.0.1": (8, 8, 1, 2),
  "stages.0.2": (8, 8, 1, 1),
}
PUBLISHED = {
  "architecture": "repvgg_tiny",
  "num_classes": 3,
  "pretrained_cfg": {
    "input_size": [3, 9, 9],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
  },
}


def _tensors():
  """Returns the tensors in torch's layout, made of a chirp."""
  shapes = {"head.fc.weight": (3, 8), "head.fc.bias": (3,)}
  for name, (inputs, outputs, stride, groups) in BLOCKS.items():
    norms = ["conv_kxk.bn", "conv_1x1.bn"]
    if inputs == outputs and stride == 1:
      norms.append("identity")
    for norm in norms:
      for leaf in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.{norm}.{leaf}"] = (outputs,)
    for conv, size in (("kxk", 3), ("1x1", 1)):
      window = (outputs, inputs // groups, size, size)
      shapes[f"{name}.conv_{conv}.conv.weight"] = window
  tensors = {
    key: _chirp(i, shape) + key.endswith(("var", "bn.weight"))
    for i, (key, shape) in enumerate(sorted(shapes.items()))
  }
  counts = {
    key.replace("running_var", "num_batches_tracked"): np.array(7)
    for key in shapes
    if key.endswith("running_var")
  }
  return tensors | counts


def _chirp(i, shape):
  # No generator of random numbers promises the same stream for ever.
  k = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
  return (0.5 * np.sin(0.37 * k * k + i)).astype(np.float32)


def _write(folder, published, tensors):
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(published))
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return folder


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch):
  monkeypatch.setitem(repvgg.CONFIGS, "tiny", CONFIG)
  return _write(tmp_path / "tiny", PUBLISHED, _tensors())


def _torch_conv(x, w, stride, groups):
  """Convolves `[B, I, H, W]` with `[O, I / G, k, k]`, padded by k // 2."""
  k = w.shape[-1]
  pad = k // 2
  x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
  windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
  windows = windows[:, :, ::stride, ::stride]
  return np.concatenate(
    [
      np.einsum("bihwyx,oiyx->bohw", part, kernel)
      for part, kernel in zip(
        np.split(windows, groups, axis=1), np.split(w, groups), strict=True
      )
    ],
    axis=1,
  )


def _torch_forward(tensors, x):
  """What timm computes from these tensors, in numpy, images `[B, 3, H, W]`."""

  def norm(name, y):
    weight, bias, mean, var = (
      tensors[f"{name}.{leaf}"][:, None, None]
      for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (y - mean) / np.sqrt(var + 1e-5) * weight + bias

  for name, (_, _, stride, groups) in BLOCKS.items():
    y = sum(
      norm(
        f"{name}.{conv}.bn",
        _torch_conv(x, tensors[f"{name}.{conv}.conv.weight"], stride, groups),
      )
      for conv in ("conv_kxk", "conv_1x1")
    )
    if f"{name}.identity.weight" in tensors:
      y = y + norm(f"{name}.identity", x)
    x = np.maximum(y, 0)
  return x.mean((2, 3)) @ tensors["head.fc.weight"].T + tensors["head.fc.bias"]


def test_read_weights_compute_what_was_published(folder):
  c = repvgg_weights.load(folder)
  images = _chirp(99, (2, 3, 9, 9))
  expected = _torch_forward(_tensors(), images)
  assert np.ptp(expected) > 0.1
  with jax.default_matmul_precision("highest"):
    found = jax.jit(c.model.apply)(c.variables, images.transpose(0, 2, 3, 1))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert c.model.config.classes == 3
  assert c.size == 9
  assert c.mean == (0.485, 0.456, 0.406)
  assert c.std == (0.229, 0.224, 0.225)
  assert c.folder == folder


def test_names_of_the_published_files():
  """The names of RepVGG-A1's tensors, spelled out for a few."""
  config = repvgg.CONFIGS["a1"]
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  like = jax.eval_shape(repvgg.RepVGG(config).init, jax.random.key(0), image)
  paths = [
    tuple(key.key for key in path)
    for path, _ in jax.tree.leaves_with_path(like)
  ]
  names = [repvgg_weights.Names().keys(path)[0] for path in paths]
  assert len(set(names)) == len(paths)
  assert {
    "stem.conv_kxk.conv.weight",
    "stem.conv_1x1.bn.running_mean",
    "stages.0.0.conv_kxk.bn.weight",
    "stages.2.13.identity.running_var",
    "stages.3.0.conv_1x1.conv.weight",
    "head.fc.bias",
  } <= set(names)
  identities = {name for name in names if ".identity.weight" in name}
  assert len(identities) == 1 + 3 + 13


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"stages.0.1.identity.bias": None}, r"'stages.0.1.identity.bias' is miss"),
    ({"stem.identity.bias": np.ones(4)}, r"1 tensors have no place .*identity"),
    (
      {"head.fc.weight": np.ones((8, 3))},
      r"head.fc.weight' has shape \(8, 3\)",
    ),
    (
      {"stem.conv_kxk.conv.weight": np.ones((3, 4, 3, 3))},
      r"\(3, 4, 3, 3\), but the config asks for \(4, 3, 3, 3\)",
    ),
  ],
)
def test_bad_tensors(folder, change, message):
  tensors = _tensors() | change
  kept = {key: value for key, value in tensors.items() if value is not None}
  _write(folder, PUBLISHED, kept)
  with pytest.raises(ValueError, match=rf"model.safetensors: .*{message}"):
    repvgg_weights.load(folder)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"architecture": "resnet50"}, r"architecture='resnet50' is not one of"),
    ({"pretrained_cfg": {}}, r"'input_size' is missing"),
  ],
)
def test_bad_config(folder, change, message):
  _write(folder, PUBLISHED | change, _tensors())
  with pytest.raises(ValueError, match=rf"config.json: {message}"):
    repvgg_weights.load(folder)
