import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict
import numpy as np
import pytest

import quantlab as ql
from quantlab.core import numerics
from quantlab.experiments import configs
from quantlab.transforms import levels
from tests import draws

W = draws.student_t((128, 32), 3.0)
BLOCK = numerics.per_block(0, 64)

# Plain data and the same by hand.
SAME = {
  "rtn": (
    {"method": "rtn", "bits": 3, "symmetric": True, "narrow": False},
    lambda: ql.rtn(3, symmetric=True, narrow=False),
  ),
  "granularity": (
    {"method": "rtn", "bits": 4, "granularity": ["per_block", 0, 64]},
    lambda: ql.rtn(4, granularity=BLOCK),
  ),
  "granularity by name": (
    {"method": "rtn", "bits": 4, "granularity": "per_tensor"},
    lambda: ql.rtn(4, granularity=ql.per_tensor),
  ),
  "granularity of named arguments": (
    {
      "method": "rtn",
      "bits": 4,
      "granularity": {"method": "per_block", "axis": 0, "size": 64},
    },
    lambda: ql.rtn(4, granularity=BLOCK),
  ),
  "estimator": (
    {"method": "rtn", "bits": 4, "estimator": ["percentile", 99]},
    lambda: ql.rtn(4, estimator=ql.percentile(99.0)),
  ),
  "estimator with settings": (
    {
      "method": "rtn",
      "bits": 2,
      "estimator": {"method": "mse", "smallest": 0.1},
    },
    lambda: ql.rtn(2, estimator=ql.mse(smallest=0.1)),
  ),
  "none": (
    {"method": "rtn", "bits": 2, "estimator": None},
    lambda: ql.rtn(2),
  ),
  "icquant around lloyd": (
    {
      "method": "icquant",
      "ratio": 0.1,
      "inner": {
        "method": "lloyd",
        "bits": 2,
        "dtype": "float16",
        "fitter": {"method": "kmeans", "breaks": 16},
      },
    },
    lambda: ql.icquant(
      ql.lloyd(2, dtype=jnp.float16, fitter=levels.kmeans(breaks=16)),
      ratio=0.1,
    ),
  ),
  "easyquant": (
    {"method": "easyquant", "bits": 3, "sigmas": 2, "steps": 5},
    lambda: ql.easyquant(3, sigmas=2.0, steps=5),
  ),
}


@pytest.mark.parametrize("case", SAME)
def test_plain_data_is_the_quantizer(case):
  plain, by_hand = SAME[case]
  found = ql.quantize(configs.build(plain), W)
  expected = ql.quantize(by_hand(), W)
  assert ql.nbits(found) == ql.nbits(expected) < 10 * W.size
  np.testing.assert_array_equal(found.dequantize(), expected.dequantize())


def test_keep_is_keep():
  assert configs.build("keep") is ql.keep()


# Plain data and what the error says, all of it on one line.
WRONG = {
  "method": (
    {"method": "icqant", "inner": "rtn"},
    r"^c\.method: unknown quantizer 'icqant'; did you mean 'icquant'\? K",
  ),
  "nothing alike": (
    "zzz",
    r"^c: unknown quantizer 'zzz'\. Known: keep, cast",
  ),
  "argument": (
    {"method": "rtn", "bits": 3, "symetric": True},
    r"^c\.symetric: rtn has no .*; did you mean 'symmetric'\? Known: bits, sym",
  ),
  "missing": ({"method": "rtn"}, r"^c: rtn: missing .*'bits'.*Known: bits"),
  "string for int": (
    {"method": "rtn", "bits": "3"},
    r"^c\.bits: expected an integer, got '3'$",
  ),
  "float for int": (
    {"method": "rtn", "bits": 3.5},
    r"^c\.bits: expected an integer, got 3\.5$",
  ),
  "bool for int": (
    {"method": "rtn", "bits": True},
    r"^c\.bits: expected an integer, got True$",
  ),
  "int for bool": (
    {"method": "rtn", "bits": 3, "symmetric": 1},
    r"^c\.symmetric: expected True or False, got 1$",
  ),
  "string for float": (
    {"method": "icquant", "inner": ["rtn", 2], "ratio": "x"},
    r"^c\.ratio: expected a number, got 'x'$",
  ),
  "none where none is allowed not": (
    {"method": "easyquant", "bits": 3, "sigmas": None},
    r"^c\.sigmas: expected a number, got None$",
  ),
  "nested": (
    {"method": "icquant", "inner": {"method": "lloyd", "bits": 2.5}},
    r"^c\.inner\.bits: expected an integer, got 2\.5$",
  ),
  "value": (
    {"method": "rtn", "bits": 9},
    r"^c: rtn takes 2 to 8 or 16 bits, got bits=9$",
  ),
  "granularity": (
    {"method": "rtn", "bits": 3, "granularity": "per_chanel"},
    r"^c\.granularity: unknown .* 'per_chanel'; did you mean 'per_channel'\?",
  ),
  "positional type": (
    {"method": "rtn", "bits": 3, "granularity": ["per_block", 0, "64"]},
    r"^c\.granularity\.size: expected an integer, got '64'$",
  ),
  "too many": (
    {"method": "rtn", "bits": 3, "granularity": ["per_block", 0, 64, 1]},
    r"^c\.granularity: per_block: too many positional arguments",
  ),
  "variadic": (
    {"method": "rtn", "bits": 3, "granularity": ["per_channel", 0, "x"]},
    r"^c\.granularity\.axes: expected an integer, got 'x'$",
  ),
  "dtype": (
    {"method": "rtn", "bits": 3, "dtype": "flot16"},
    r"^c\.dtype: 'flot16' is no type of floats; did you mean 'float16'\?",
  ),
  "shape of a call": ({"bits": 3}, r"^c: a quantizer is a name, a list .*got"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_plain_data_is_one_clear_error(case):
  plain, message = WRONG[case]
  with pytest.raises(ValueError, match=message) as error:
    configs.build(plain, "c")
  assert "\n" not in str(error.value)


def test_shared_arguments_reach_every_quantizer_that_has_them():
  values = {"bits": 3, "dtype": "float16"}
  shared = configs.Shared(values, "config.weights")
  nest = {"method": "icquant", "inner": "lloyd"}
  q = ql.quantize(configs.build(nest, "config.icquant", shared), W)
  for grid in q.grid.grids:
    assert grid.levels.shape == (1, 32, 8)
    assert grid.levels.dtype == jnp.float16


def test_own_arguments_count_more_than_shared_ones():
  shared = configs.Shared({"bits": 8, "dtype": "float16"}, "config.weights")
  nest = {"method": "cfws", "fine": {"method": "rtn", "bits": 3}}
  kernel = jnp.ones((3, 3, 4, 8))
  q = ql.quantize(configs.build(nest, "config.cfws", shared), kernel)
  assert sorted(part.codes.bits for part in _leaves(q)) == [3, 8]
  assert {part.grid.scale.dtype.name for part in _leaves(q)} == {"float16"}


def _leaves(q):
  return [
    part.part if isinstance(part, ql.Window) else part for part in q.parts
  ]


def test_wrong_shared_argument_names_its_own_place():
  shared = configs.Shared({"bits": "3"}, "config.weights")
  with pytest.raises(ValueError, match=r"^config\.weights\.bits: .*got '3'$"):
    configs.build("rtn", "config.rtn", shared)


def test_shared_argument_that_nothing_takes():
  shared = configs.Shared({"bits": 3, "bit": 3}, "config.weights")
  with pytest.raises(ValueError, match=r"weights\.bit: no quan.*mean 'bits'"):
    configs.build("rtn", "config.rtn", shared)
  shared = configs.Shared({"bits": 3, "steps": 3}, "config.weights")
  with pytest.raises(ValueError, match=r"weights\.steps: 'rtn' does not use"):
    configs.build("rtn", "config.rtn", shared)


def test_bind_reports_the_section():
  def load(path: str, *, limit: int | None = 3): ...

  bound = configs.bind(load, {"path": "x", "limit": None}, "config.data")
  assert bound.arguments == {"path": "x", "limit": None}
  with pytest.raises(ValueError, match=r"^config\.data\.limt: .*mean 'limit'"):
    configs.bind(load, {"path": "x", "limt": 4}, "config.data")
  with pytest.raises(ValueError, match=r"^config\.data\.path: .*a str, got 3"):
    configs.bind(load, {"path": 3}, "config.data")


def test_plain_copies_a_config_dict():
  config = ml_collections.ConfigDict({"a": (1, ("b", 2.5)), "d": {"e": "f"}})
  config.open = config_dict.placeholder(int)
  expected = {"a": [1, ["b", 2.5]], "d": {"e": "f"}, "open": None}
  assert configs.plain(config) == expected
  assert configs.plain(ml_collections.FrozenConfigDict(config)) == expected
  config.a = ({"c": config.d},)
  assert configs.plain(config)["a"] == [{"c": {"e": "f"}}]


def test_plain_refuses_objects():
  with pytest.raises(ValueError, match=r"^config\.a\[1\]: .*got ArrayImpl$"):
    configs.plain({"a": [1, W]})


def test_explained_is_one_line():
  with (
    pytest.raises(configs.InputError, match=r"^first second$"),
    configs.explained(),
  ):
    raise OSError("first\n  second\n")
  with pytest.raises(RuntimeError), configs.explained():
    raise RuntimeError("a bug keeps its traceback")
