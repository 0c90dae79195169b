"""Shapes, norms and sites of the small convolutional networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quantlab as ql
from quantlab.models import cnn
from tests import draws

CONVOLUTIONAL = (
  "resnet8",
  pytest.param("mobilenet", marks=pytest.mark.study),
  "efficientnet",  # the same blocks and more
)
ALL = pytest.mark.parametrize("name", CONVOLUTIONAL)


def _network(name):
  model = cnn.NETWORKS[name].clone(classes=7)
  x = draws.normal((2, 8, 8, 1))
  return model, jax.jit(model.init)(jax.random.key(0), x), x


@ALL
def test_logits_and_statistics(name):
  model, variables, x = _network(name)
  assert {*variables} == {"params", "batch_stats"}
  logits = jax.jit(model.apply)(variables, x)
  assert logits.shape == (2, 7)
  train = jax.jit(lambda v, x: model.apply(v, x, mutable=["batch_stats"]))
  other, moved = train(variables, x)
  assert np.any(np.asarray(other) != logits)
  assert jax.tree.structure(moved["batch_stats"]) == jax.tree.structure(
    variables["batch_stats"]
  )
  # Without a mutable collection each image is on its own.
  alone = jax.jit(model.apply)(variables, jnp.concatenate([x[:1], 9 * x[1:]]))
  np.testing.assert_allclose(alone[0], logits[0], rtol=1e-4, atol=1e-5)


@ALL
def test_every_convolution_has_a_site(name):
  model, variables = cnn.NETWORKS[name], _shapes(name)
  x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
  sites = ql.sites(model, variables, x)
  kernels = [
    path[0][:-1]
    for path in (
      (tuple(k.key for k in keys), leaf)
      for keys, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    )
    if path[0][-1] == "kernel"
  ]
  for path in kernels:
    assert "/".join((*path, "in")) in sites


@pytest.mark.parametrize(
  ("name", "size", "weights"),
  [
    ("mlp", 8, 64 * 64 + 64 * 32 + 32 * 10),
    ("mlp_wide", 8, 64 * 128 + 128 * 128 + 128 * 10),
    ("lenet5", 28, 581_408),  # as in Bayesian Bits
  ],
)
def test_weights_of_networks_without_norm(name, size, weights):
  x = jnp.ones((1, size, size, 1))
  shapes = jax.eval_shape(cnn.NETWORKS[name].init, jax.random.key(0), x)
  layers = shapes["params"].values()
  assert sum(layer["kernel"].size for layer in layers) == weights


def _shapes(name):
  x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
  return jax.eval_shape(cnn.NETWORKS[name].init, jax.random.key(0), x)


def test_what_the_networks_are_made_of():
  resnet, mobile, efficient = map(
    _shapes, ("resnet8", "mobilenet", "efficientnet")
  )
  first = resnet["params"]["block_0"]
  assert {*first} == {"first", "second"}  # the shapes are equal
  assert {*resnet["params"]["block_1"]} == {"first", "second", "shortcut"}
  inside = {"expand", "depthwise", "project"}
  assert {*mobile["params"]["block_0"]} == inside
  assert {*efficient["params"]["block_0"]} == inside | {"squeeze", "excite"}
  depthwise = mobile["params"]["block_0"]["depthwise"]["conv"]["kernel"]
  assert depthwise.shape == (3, 3, 1, 48)
