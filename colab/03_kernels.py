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
# # Products with packed weights
#
# A layer's weights are stored in 2, 3 or 4 bits, and stay so in memory: the
# product decodes them on the way. This notebook packs a layer, runs it, checks
# the result against the decoded weights, and measures time and bytes of each
# format on whatever device is there. On a CPU it takes half a minute.

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
import logging

from flax import linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import quantlab as ql
from quantlab.experiments.bench import kernels
from quantlab.kernels import ops

# One line per shape says which way a product goes.
logging.basicConfig(format="%(message)s", stream=sys.stdout)
logging.getLogger("quantlab.kernels").setLevel(logging.INFO)

BLUE, ORANGE = "#0072B2", "#D55E00"
device = jax.devices()[0]
size = 1024 if device.platform == "cpu" else 8192
print(device.device_kind)

# %% [markdown]
# ## Pack a layer
#
# Any plan will do. `ql.prepare` turns the positions of ICQuant's outliers,
# which a checkpoint keeps as gaps, into a plane of bits that a kernel reads in
# place; the values stay the same.

# %%
layer = nn.Dense(size, use_bias=False)
x = jax.random.normal(jax.random.key(0), (1, size))
params = jax.jit(layer.init)(jax.random.key(1), x)["params"]

packed = ql.quantize(ql.by_path([("", ql.icquant(ql.rtn(2)))]), params)
ready = jax.block_until_ready(ql.prepare(packed))

for name, tree in {"float32": params, "stored": packed, "ready": ready}.items():
  print(f"{name:8}{ql.bits_per_weight(tree):6.2f} bits per weight")
assert jnp.array_equal(
  ql.dequantize(packed)["kernel"], ql.dequantize(ready)["kernel"]
)

# %% [markdown]
# ## Run it
#
# The model is flax's own `nn.Dense`; `ql.apply` sends its product to
# `kernels.ops`.

# %%
run = jax.jit(lambda params, x: ql.apply(layer, {"params": params}, x))
y = run(ready, x)
exact = np.asarray(x, np.float64) @ np.asarray(
  ql.dequantize(ready)["kernel"], np.float64
)
error = np.abs(np.asarray(y) - exact).max() / np.abs(exact).max()
print(f"largest error {error:.1e} of the largest output")
assert error < 1e-5

# %% [markdown]
# Nowhere in the compiled program is there a decoded copy of the weights: what
# it needs beside its arguments is far less than one.

# %%
memory = run.lower(ready, x).compile().memory_analysis()
dense = params["kernel"].nbytes
print(f"arguments  {memory.argument_size_in_bytes:>10,} bytes")
print(f"temporary  {memory.temp_size_in_bytes:>10,} bytes")
print(f"a decoded weight would be {dense:,} bytes")
assert memory.argument_size_in_bytes < dense / 8
assert memory.temp_size_in_bytes < dense / 4

# %% [markdown]
# ## Any stored form, one entry
#
# `ops.dot` takes arrays, uniform and table grids, outliers that are coded or
# exact, and sums of parts.

# %%
w = params["kernel"]
methods = {
  "rtn 4-bit": ql.rtn(4),
  "rtn 3-bit, blocks of 128": ql.rtn(3, granularity=ql.per_block(0, 128)),
  "EasyQuant 4-bit": ql.easyquant(4, steps=5),
  "SplitQuant 2-bit": ql.splitquant(ql.rtn(2)),
}
for name, method in methods.items():
  q = ql.prepare(ql.quantize(method, w))
  exact = np.asarray(x, np.float64) @ np.asarray(q.dequantize(), np.float64)
  error = np.abs(np.asarray(ops.dot(x, q)) - exact).max() / np.abs(exact).max()
  print(f"{name:26}{ql.bits_per_weight(q):6.2f} bits, error {error:.1e}")
  assert error < 1e-5

# %% [markdown]
# ## Time and bytes
#
# The same measurement as `python -m launch.bench kernels`: all formats in
# turns, several copies of each weight so that none stays in a cache, the median
# of the rounds.

# %%
results = kernels.run(
  [(size, size)],
  [1, 16],
  rounds=5,
  only=["4-bit, blocks", "2-bit, blocks", "ICQuant 2"],
)
kernels.show(results)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
first, second = (each["cases"] for each in results["products"])
names = list(first)
places = np.arange(len(names))
left.barh(
  places, [first[name]["bits"] * size**2 / 8e6 for name in names], color=BLUE
)
left.set_yticks(places, names)
left.invert_yaxis()
left.set_xlabel("megabytes of weights")
for shift, color, rows, cases in (
  (-0.2, BLUE, 1, first),
  (0.2, ORANGE, 16, second),
):
  times = [cases[name]["seconds"] * 1e6 for name in names]
  right.barh(places + shift, times, 0.4, color=color, label=f"M = {rows}")
right.set_xlabel("microseconds of a product with M rows of activations")
fig.legend(loc="upper right", ncols=2)
for axes in (left, right):
  axes.grid(axis="x", alpha=0.4)
  axes.set_axisbelow(True)
fig.suptitle(f"{size} x {size} weights on {device.device_kind}")
fig.tight_layout()
plt.show()
