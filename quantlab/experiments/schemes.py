"""A quantized model as it runs, read back from the folder of a job.

A scheme is what a variant of the ptq job amounts to: packed parameters, and a
plan of the activations with its state. Layers of several make another one.
"""

from collections.abc import Iterable, Mapping
import pathlib
import re
from typing import Any, NamedTuple

import jax

import quantlab as ql
from quantlab.core import qtensor
from quantlab.experiments import calibration, configs, variants, workdir
from quantlab.transforms import compose, plan

CHOSEN = "chosen.json"
"""In a variant's folder: of a scheme that is made of others, which ones."""


class Scheme(NamedTuple):
  """A quantized model.

  Attributes:
    params: packed, or float.
    acts: plan of the activations; None leaves them float.
    state: of that plan.
  """

  params: Any
  acts: plan.Plan | None = None
  state: ql.State | None = None


def restore(folder: str | pathlib.Path) -> Scheme:
  """Reads a variant's folder, or that of a float model.

  Args:
    folder: of a finished variant of the ptq job, such as
      `runs/schemes-gru128/mixed-8bit-max`; or one that holds `params` alone,
      such as `runs/denoiser-gru128/float`.

  Raises:
    InputError: what is there is no model, or is damaged.
  """
  folder = pathlib.Path(folder).expanduser()
  if not (folder / "params").is_dir():
    raise configs.InputError(
      f"{folder}: no model is there, which would be the folder 'params' in it"
    )
  if (folder / "acts").exists():
    raise configs.InputError(
      f"{folder}: its activations were trained; only those that were "
      "calibrated can be restored"
    )
  params = workdir.restore(folder / "params")
  params = params.get("params", params)
  root = folder.parent
  config = {}
  if (root / "run.json").exists():
    config = workdir.read_json(root / "run.json")["identity"]["config"]
  if "task" not in config:
    return Scheme(params)
  if (folder / CHOSEN).exists():
    found = workdir.read_json(folder / CHOSEN)
    parts = {name: restore(root / name) for name in {*found["chosen"].values()}}
    chosen = {layer: parts[name] for layer, name in found["chosen"].items()}
    return join(found["layers"], chosen, params, found["sites"])
  every = {variant.name: variant for variant in variants.variants(config)}
  if folder.name not in every:
    raise configs.InputError(
      f"{folder}: is no variant of {root}, which has {', '.join(every)}"
    )
  name = every[folder.name].acts
  if not name:
    return Scheme(params)
  acts = calibration.acts(config)[name].plan
  state = workdir.restore(root / "acts" / name)
  return Scheme(params, acts, state)


def join(
  layers: Mapping[str, str],
  chosen: Mapping[str, Scheme],
  params: Any,
  sites: Any,
) -> Scheme:
  """Takes each layer from the scheme that is chosen for it.

  Args:
    layers: `{layer: pattern}` of the paths of its parameters and sites.
    chosen: `{layer: scheme}`; layers without one stay as they are.
    params: the parameters as they are.
    sites: of the model, a dict or a list of names.

  Returns:
    The scheme; sites of no layer keep their activations.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"a": {"kernel": jnp.ones((4, 2))}, "b": {"bias": jnp.ones(2)}}
    >>> rounded = jax.tree.map(lambda x: 0.5 * x, params)
    >>> joined = join({"a": "^a/"}, {"a": Scheme(rounded)}, params, ["a/in"])
    >>> joined.params["a"]["kernel"][0, 0].item(), joined.params["b"]["bias"][0]
    (0.5, Array(1., dtype=float32))
  """
  leaves, taken = plan.leaves(params), {}
  rules, learned, stats = [], {}, {}
  for layer, scheme in chosen.items():
    own = plan.leaves(scheme.params)
    taken |= {path: own[path] for path in inside(layers[layer], leaves)}
    if scheme.acts is None:
      continue
    state = scheme.state or ql.State({}, {})
    placed = scheme.acts.assign(dict.fromkeys(sites, 0))
    for site in inside(layers[layer], placed):
      if placed[site] is not compose.keep():
        rules.append((f"^{re.escape(site)}$", placed[site]))
      if site in state.stats:
        learned[site] = state.learned[site]
        stats[site] = state.stats[site]
  tree = jax.tree.unflatten(
    jax.tree.structure(params, is_leaf=qtensor.is_quantized),
    [taken.get(path, leaf) for path, leaf in leaves.items()],
  )
  if not rules:
    return Scheme(tree)
  acts = plan.by_path([*rules, (".*", compose.keep())])
  return Scheme(tree, acts, ql.State(learned, stats))


def inside(pattern: str, paths: Iterable[str]) -> list[str]:
  """The paths that a layer's pattern finds, as rules of a plan find them.

  Raises:
    ValueError: it is no pattern.

  Example:
    >>> inside("^rnn_0/", ["rnn_0/kernel", "dense_0/kernel"])
    ['rnn_0/kernel']
  """
  chosen, _ = plan.match([(pattern, None), ("", None)], paths)
  return [path for path, index in chosen.items() if index == 0]
