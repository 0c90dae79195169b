# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training with learned ranges
#
# A network with Swish activations has a small negative lobe in them. At few
# bits an unsigned grid loses it, and a signed one spends half of its codes on
# it. LSQ+ ([arXiv 2004.09576](https://arxiv.org/abs/2004.09576)) learns an
# offset beside the step, so that the grid goes where the values are.
#
# This notebook trains a small EfficientNet-style network on handwritten digits
# with 2-bit weights and activations, and watches the ranges move.
# It runs on a CPU; every claim is an assertion.

# %%
import subprocess
import sys

try:
  import google.colab  # noqa: F401
except ImportError:
  print("Not in Colab: the installed quantlab is used.")
else:
  pip = [sys.executable, "-m", "pip", "install", "-q", "quantlab"]
  subprocess.run(pip, check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import quantlab as ql
from quantlab.data import images
from quantlab.experiments import train
from quantlab.models import cnn

# Most of the time here goes into compiling, so that had better be quick.
jax.config.update("jax_disable_most_optimizations", True)
BLUE, ORANGE = "#0072B2", "#D55E00"

# %% [markdown]
# ## A float network

# %%
digits, held = images.images(split="train"), images.images(split="test")
model = cnn.NETWORKS["efficientnet"].clone(stem=8, blocks=((12, 2),), last=32)


def batches(epoch):
  return digits.batches(64, shuffle_seed=epoch, drop_remainder=True)


first = next(iter(batches(0)))
variables = jax.jit(model.init)(jax.random.key(0), first[0])
variables = train.fit(
  model, variables, batches, train.sgd(200, learning_rate=0.1), steps=200
)
test = list(held.batches(355))
print(f"float accuracy {train.accuracy(model, variables, test):.3f}")

# %% [markdown]
# ## Where ranges start
#
# The start of LSQ+ has the least squared error of both ends. On the input of a
# layer behind Swish, its four levels against those of an unsigned grid from 0:

# %%
z = jax.random.normal(jax.random.key(1), (4000, 1))
swish = jax.nn.swish(z)
starts = {
  "LSQ, unsigned": ql.quantize(ql.lsq(2, signed=False), swish),
  "LSQ+": ql.quantize(ql.lsq_plus(2), swish),
}
figure, axes = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
axes.hist(np.ravel(swish), 120, density=True, color="0.8")
errors = {}
for i, (name, q) in enumerate(starts.items()):
  errors[name] = float(jnp.mean((q.dequantize() - swish) ** 2))
  lo, hi = q.grid.bounds
  levels = q.grid.decode(jnp.arange(lo, hi + 1.0)[:, None])
  look = {"color": (ORANGE, BLUE)[i], "ms": 26, "mew": 2}
  label = f"{name}: mean squared error {errors[name]:.4f}"
  axes.plot(np.ravel(levels), 4 * [0.5 + 1.2 * i], "|", **look, label=label)
axes.legend(frameon=False, markerscale=0.5)
axes.set_xlabel("Swish of a normal variable, and the levels of 2 bits")
axes.set_yticks([])
plt.show()
assert errors["LSQ+"] < errors["LSQ, unsigned"]

# %% [markdown]
# ## What is rounded
#
# `Plans` says what is rounded inside the loss. The first and the last layer
# have 8 bits. What the plans learn, steps and offsets, has an optimizer of its
# own.

# %%
edge, edge_act = ql.lsq(8, start=ql.three_sigma), ql.lsq_plus(8)
plans = train.Plans(
  weights=ql.by_path(
    [
      ("stem/conv/kernel|head/kernel", edge),
      ("kernel", ql.lsq(2, start=ql.three_sigma)),
      (".*", ql.keep()),
    ]
  ),
  acts=ql.by_path(
    [
      ("stem/conv/in$|head/in$", edge_act),
      ("(conv|squeeze|excite)/in$", ql.lsq_plus(2)),
      (".*", ql.keep()),
    ]
  ),
)
STEPS = 120
optimizer = train.separate(
  train.sgd(STEPS, learning_rate=0.02), optax.adam(3e-3)
)
training = train.start(model, variables, optimizer, plans, first)


run = train.quantized(model, plans)


def accuracy(training, params):
  right = [
    np.argmax(run(training, params, x), axis=1) == labels for x, labels in test
  ]
  return float(np.concatenate(right).mean())


before = accuracy(training, train.rounded(plans, training))
print(f"calibrated only: accuracy {before:.3f}")

# %% [markdown]
# ## Training
#
# One step moves weights, steps and offsets together.

# %%
WATCHED = [
  "block_0/depthwise/conv/in",
  "block_0/squeeze/in",
  "last/conv/in",
]
update = train.step(model, optimizer, plans)
losses, ends = [], {site: [] for site in WATCHED}
for _, batch in zip(range(STEPS), train.stream(batches), strict=False):
  training, seen = update(training, *batch)
  losses.append(float(seen.loss))
  for site in WATCHED:
    learned, _ = training.acts.learned[site]
    step, offset = (learned.values[k].item() for k in ("scale", "offset"))
    ends[site].append((offset - 2 * step, offset + step))  # codes -2 and 1
after = accuracy(training, train.rounded(plans, training))
print(f"trained: accuracy {after:.3f}")

# %%
figure, (left, right) = plt.subplots(
  1, 2, figsize=(9, 3.4), layout="constrained"
)
left.plot(np.convolve(losses, np.ones(8) / 8, mode="valid"), color=BLUE)
left.set_title("loss, mean of 8 steps")
for site, color in zip(WATCHED, (BLUE, ORANGE, "#009E73"), strict=True):
  right.plot(np.array(ends[site])[:, 0], color=color, label=site)
  right.plot(np.array(ends[site])[:, 1], color=color)
right.axhline(0, color="0.7", linewidth=0.8)
right.set_title("lowest and highest level")
right.legend(frameon=False, fontsize=8, loc=(0.3, 0.66))
for axes in (left, right):
  axes.set_xlabel("step")
plt.show()
assert np.mean(losses[-20:]) < np.mean(losses[:20])
assert after > before
moved = np.array(ends["block_0/depthwise/conv/in"])
assert np.any(moved[0] != moved[-1])
assert moved[-1, 0] < 0  # the lobe is covered

# %% [markdown]
# ## What is stored
#
# `deploy` packs the weights with the grids that were trained. The packed
# network says what the training saw, to the last bit.

# %%
packed = train.deploy(plans, training)
x, _ = test[0]
logits = [
  run(training, params, x)
  for params in (train.rounded(plans, training), packed)
]
np.testing.assert_array_equal(*logits)
print(f"{ql.bits_per_weight(packed):.2f} bits per parameter, all together")
words = packed["block_0"]["expand"]["conv"]["kernel"].codes.words
print(f"2-bit codes of a kernel are in {words.size} words of {words.dtype}")
