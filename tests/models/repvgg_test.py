import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quantlab.models import repvgg
from tests import draws

# Both strides, blocks with and without the identity, even and odd sides.
PLAIN = repvgg.RepVGGConfig((4, 8), (2, 3), (1, 2), classes=5)
GROUPED = dataclasses.replace(PLAIN, groups=2)


def _images(side=8):
  return draws.normal((3, side, side, 2), 2)


def _shapes(config, side=8, fused=False):
  model = repvgg.RepVGG(config, fused=fused)
  return jax.eval_shape(model.init, jax.random.key(0), _images(side))


def _variables(config):
  """Returns variables of which none is 0 or 1, as they start out."""
  variables = draws.like(_shapes(config), 0.5)
  for stage in variables["batch_stats"].values():
    for norms in stage.values():
      for norm in norms.values():
        norm["var"] = 0.3 + norm["var"] ** 2
  return variables


def _paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def test_fuse_by_hand():
  def norm(scale, std, bias, mean):
    stats = {"mean": jnp.array([mean]), "var": jnp.array([std**2]) - 1e-5}
    return {"scale": jnp.array([scale]), "bias": jnp.array([bias])}, stats

  norms = {
    "norm_3x3": norm(2.0, 2.0, 3.0, 4.0),  # factor 1, bias 3 - 4
    "norm_1x1": norm(1.0, 2.0, 0.5, 2.0),  # factor .5, bias .5 - 1
    "norm_identity": norm(4.0, 2.0, 1.0, 0.25),  # factor 2, bias 1 - .5
  }
  kernels = {
    "conv_3x3": {"kernel": jnp.arange(9.0).reshape(3, 3, 1, 1)},
    "conv_1x1": {"kernel": jnp.array(6.0).reshape(1, 1, 1, 1)},
  }
  params = {key: norm[0] for key, norm in norms.items()} | kernels
  stats = {key: norm[1] for key, norm in norms.items()}
  head = {"kernel": jnp.ones((1, 1))}
  fused = repvgg.fuse(
    {
      "params": {"stage_0": {"block_0": params}, "head": head},
      "batch_stats": {"stage_0": {"block_0": stats}},
    }
  )
  assert fused["params"]["head"] is head
  conv = fused["params"]["stage_0"]["block_0"]["conv"]
  expected = [[0, 1, 2], [3, 4 + 3 + 2, 5], [6, 7, 8]]
  np.testing.assert_allclose(conv["kernel"][..., 0, 0], expected, rtol=1e-6)
  np.testing.assert_allclose(conv["bias"], [-1 - 0.5 + 0.5], rtol=1e-6)


@pytest.mark.parametrize(("config", "side"), [(PLAIN, 7), (GROUPED, 8)])
def test_fuse_keeps_the_outputs(config, side):
  variables, images = _variables(config), _images(side)
  model = repvgg.RepVGG(config)
  with jax.default_matmul_precision("highest"):
    expected = jax.jit(model.apply)(variables, images)
    fused = repvgg.fuse(variables)
    found = jax.jit(model.clone(fused=True).apply)(fused, images)
  scale = np.abs(expected).max()
  assert scale > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("config", [PLAIN, GROUPED])
def test_fuse_fills_the_fused_network(config):
  found = jax.eval_shape(repvgg.fuse, _shapes(config))
  assert _paths(found) == _paths(_shapes(config, fused=True))


def test_names_and_shapes():
  params = _paths(_shapes(GROUPED)["params"])
  assert params["stage_0/block_0/conv_3x3/kernel"] == (3, 3, 2, 4)
  assert params["stage_1/block_0/conv_1x1/kernel"] == (1, 1, 2, 8)
  assert params["stage_1/block_1/norm_3x3/scale"] == (8,)
  assert params["head/kernel"] == (8, 5)
  fused = _paths(_shapes(GROUPED, fused=True)["params"])
  kernels = {k: v for k, v in fused.items() if k.endswith("conv/kernel")}
  # Blocks 2 and 4 of the network have groups: a stage starts where it will.
  assert kernels == {
    "stage_0/block_0/conv/kernel": (3, 3, 2, 4),
    "stage_0/block_1/conv/kernel": (3, 3, 4, 4),
    "stage_1/block_0/conv/kernel": (3, 3, 2, 8),
    "stage_1/block_1/conv/kernel": (3, 3, 8, 8),
    "stage_1/block_2/conv/kernel": (3, 3, 4, 8),
  }


def test_identity_where_shapes_allow():
  names = [path for path in _paths(_shapes(PLAIN)) if "identity/scale" in path]
  assert [name.split("/")[1:3] for name in sorted(names)] == [
    ["stage_0", "block_1"],
    ["stage_1", "block_1"],
    ["stage_1", "block_2"],
  ]
  # Equal widths are not enough: the sides must be equal too.
  strided = dataclasses.replace(PLAIN, widths=(2, 2), depths=(1, 1))
  names = [path for path in _paths(_shapes(strided)) if "identity/" in path]
  assert {name.split("/")[1] for name in names} == {"stage_0"}


@pytest.mark.parametrize(
  ("name", "branched", "fused"),
  # Millions. arXiv 2101.03697 has the fused ones, cut off after two digits.
  [
    ("a0", 9.11, 8.31),
    ("a1", 14.09, 12.79),
    ("b0", 15.82, 14.34),
    ("b1", 57.42, 51.83),
    ("b1g4", 39.97, 36.13),
  ],
)
def test_published_sizes(name, branched, fused):
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  for is_fused, millions in ((False, branched), (True, fused)):
    model = repvgg.RepVGG(repvgg.CONFIGS[name], fused=is_fused)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert round(count / 1e6, 2) == millions


def test_batch_statistics_where_they_are_collected():
  variables, images = _variables(PLAIN), _images()
  model = repvgg.RepVGG(PLAIN)
  evaluated = model.apply(variables, images)
  trained, updates = model.apply(variables, images, mutable=["batch_stats"])
  assert np.abs(trained - evaluated).max() > 0.1

  block = variables["params"]["stage_0"]["block_0"]
  y = images @ block["conv_1x1"]["kernel"][0, 0]
  old, new = (
    tree["batch_stats"]["stage_0"]["block_0"]["norm_1x1"]
    for tree in (variables, updates)
  )
  mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
  close = {"rtol": 1e-4, "atol": 1e-5}
  np.testing.assert_allclose(
    new["mean"], 0.9 * old["mean"] + 0.1 * mean, **close
  )
  np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, **close)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"depths": (1,)}, r"depths=\(1,\) .* one entry per stage"),
    ({"groups": 3}, r"widths=\(4, 8\) must be divisible by groups=3"),
  ],
)
def test_bad_config(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PLAIN, **change)


def test_nothing_to_fuse():
  fused = _shapes(PLAIN, fused=True)
  with pytest.raises(ValueError, match=r"of branches; got \['params'\]"):
    repvgg.fuse(fused)
