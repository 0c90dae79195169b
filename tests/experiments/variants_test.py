import pytest

import quantlab as ql
from quantlab.experiments import configs, variants
from tests import draws

CONFIG = {
  "rules": [
    ["bias", "keep"],
    ["down", {"method": "rtn", "bits": 8}],
    ["kernel$", "weights"],
  ],
  "methods": {
    "rtn": {"method": "rtn", "symmetric": True},
    "coded": {
      "method": "icquant",
      "inner": {"method": "lloyd"},
      "ratio": 0.1,
    },
  },
  "weights": {
    "method": None,
    "bits": None,
    "granularity": ["per_channel", -1],
    "dtype": "float16",
  },
  "sweep": {"rtn": {"bits": [2, 4]}, "coded": {"bits": [2, 4]}},
}
BLOCKS = ["per_output", ["per_block", -2, 32]]


def _with(**changes):
  """The config with sections changed, entry by entry."""
  out = dict(CONFIG)
  for name, value in changes.items():
    is_section = isinstance(value, dict) and name in CONFIG
    out[name] = {**CONFIG[name], **value} if is_section else value
  return out


def _names(config):
  return [variant.name for variant in variants.variants(config)]


def test_sweep_is_the_product_of_what_is_open():
  assert _names(CONFIG) == ["rtn-2bit", "rtn-4bit", "coded-2bit", "coded-4bit"]
  # What `weights` says counts more than the lists.
  assert _names(_with(weights={"bits": 3})) == ["rtn-3bit", "coded-3bit"]
  assert _names(_with(weights={"method": "coded"})) == [
    "coded-2bit",
    "coded-4bit",
  ]
  [variant] = variants.variants(_with(weights={"method": "rtn", "bits": 3}))
  assert variant[:3] == ("rtn-3bit", "rtn", 3)
  assert not variant.sensitive


def test_methods_have_lists_of_their_own():
  sweep = {"rtn": {"granularity": BLOCKS, "bits": [8]}, "coded": {"bits": [2]}}
  config = _with(sweep=sweep, weights={"granularity": None})
  found = variants.variants(config)
  assert [variant.name for variant in found] == [
    *("rtn-8bit-per_output", "rtn-8bit-per_block_2_32", "coded-2bit"),
  ]
  words = ["per_output", "per_block(-2, 32)", ""]
  assert [variant.granularity for variant in found] == words
  w = draws.normal((64, 8))
  scales = [
    ql.quantize(variant.rules[2].quantizer, w).grid for variant in found[:2]
  ]
  assert [grid.scale.shape for grid in scales] == [(1, 8), (2, 8)]


def test_a_method_of_one_variant_needs_no_list():
  methods = {"rtn": {"method": "rtn", "bits": 5}}
  config = _with(methods=methods)
  config |= {"weights": {}, "sweep": {"rtn": {}}}
  [variant] = variants.variants(config)
  assert variant[:3] == ("rtn-5bit", "rtn", 5)


def test_sweep_of_any_entry_names_it():
  sweep = {"rtn": {"dtype": ["float16", "float32"]}}
  weights = {"method": "rtn", "bits": 3, "dtype": None}
  config = _with(weights=weights, sweep=sweep)
  assert _names(config) == ["rtn-3bit-float16", "rtn-3bit-float32"]


def test_sensitivity_and_acts_of_a_variant():
  methods = {"rtn": {"method": "rtn", "sensitivity": True}}
  acts = {"int8": {"rules": [["in$", ["rtn", 8]], ["", "keep"]], "batches": 1}}
  config = _with(
    methods=methods,
    acts=acts,
    sensitivity={"batches": 2},
    weights={"method": "rtn", "bits": 4, "acts": None},
    sweep={"rtn": {"acts": ["", "int8"]}},
  )
  found = variants.variants(config)
  assert [variant.name for variant in found] == ["rtn-4bit", "rtn-4bit-int8"]
  assert [variant.acts for variant in found] == ["", "int8"]
  assert all(variant.sensitive for variant in found)
  assert [rule.sensitive for rule in found[0].rules] == [False, False, True]


def test_a_method_says_which_rules_and_acts_it_goes_with():
  rules = {
    "all": [["", "weights"]],
    "up": [["up", "weights"], ["", "keep"]],
  }
  methods = {
    "one": {"method": "rtn", "rules": "all", "acts": "int8"},
    "two": {"method": "rtn", "rules": "up"},
  }
  acts = {"int8": {"rules": [["in$", ["rtn", 8]], ["", "keep"]], "batches": 1}}
  config = {
    "rules": rules,
    "methods": methods,
    "acts": acts,
    "sweep": {"one": {}, "two": {}},
    "weights": {"method": None, "bits": 4},
  }
  one, two = variants.variants(config)
  assert [rule.pattern for rule in one.rules] == [""]
  assert [rule.swept for rule in two.rules] == [True, False]
  assert (one.acts, two.acts) == ("int8", "")
  methods["two"]["rules"] = "upp"
  with pytest.raises(
    configs.InputError, match=r"methods\.two\.rules: .*did you mean 'up'"
  ):
    variants.variants(config)
  del methods["two"]["rules"]
  with pytest.raises(configs.InputError, match="rules has no None"):
    variants.variants(config)


def test_rules_place_the_quantizers():
  variant = variants.variants(CONFIG)[3]
  placed, unused = variant.place(["up/bias", "up/kernel", "down/kernel"])
  assert unused == []
  assert placed["up/bias"].quantizer is ql.keep()
  w = draws.normal((64, 8))
  assert ql.quantize(placed["down/kernel"].quantizer, w).codes.bits == 8
  q = ql.quantize(placed["up/kernel"].quantizer, w)
  assert q.grid.labels.marks == 6
  assert q.grid.grids[0].levels.shape == (1, 8, 16)
  rules = [placed[p] for p in ("up/kernel", "down/kernel", "up/bias")]
  assert [(r.method, r.bits, r.swept) for r in rules] == [
    ("coded", 4, True),
    ("rtn", 8, False),
    ("keep", None, False),
  ]


def test_a_fixed_rule_is_one_quantizer_in_all_variants():
  # What it has compiled is found again.
  fixed = {variant.rules[1].quantizer for variant in variants.variants(CONFIG)}
  assert len(fixed) == 1


def test_place_names_unused_rules_and_unmatched_leaves():
  variant = variants.variants(CONFIG)[0]
  assert variant.place(["up/kernel"])[1] == ["bias", "down"]
  with pytest.raises(configs.InputError, match=r"^up/scale: matches no rule"):
    variant.place(["up/kernel", "up/scale"])


WRONG = {
  "section": (_with(wieghts={}), r"^config\.wieghts: .*did you mean 'weights'"),
  "no rules": (_with(rules=[]), r"^config\.rules: expected pairs .*got \[\]"),
  "no section": (
    {"rules": CONFIG["rules"]},
    r"^config\.weights: expected a section",
  ),
  "no pair": (
    _with(rules=[["bias"]]),
    r"^config\.rules\[0\]: expected a pair .*got \['bias'\]",
  ),
  "pattern": (_with(rules=[["(", "keep"]]), r"^config\.rules\[0\]\[0\]: '\('"),
  "rule's quantizer": (
    _with(rules=[["x", "weigths"]]),
    r"^config\.rules\[0\]\[1\]: unknown quantizer 'weigths'",
  ),
  "rule's argument": (
    _with(rules=[["x", {"method": "rtn", "bits": 2.5}]]),
    r"^config\.rules\[0\]\[1\]\.bits: expected an integer, got 2\.5",
  ),
  "method": (
    _with(weights={"method": "coted"}),
    r"^config\.weights\.method: config\.methods has no 'coted'; did you mean",
  ),
  "method in the sweep": (
    _with(sweep={"x": {}}),
    r"^config\.sweep\.x: config\.methods has no 'x'\. Known: rtn, coded$",
  ),
  "quantizer": (
    _with(methods={"rtn": {"method": "rnt"}}),
    r"^config\.methods\.rtn\.method: unknown quantizer 'rnt'; did you",
  ),
  "no call": (
    _with(methods={"rtn": {"bits": 3}}),
    r"^config\.methods\.rtn: a quantizer is a name, .* got \{'bits': 3\}",
  ),
  "bits": (
    _with(weights={"bits": "3"}),
    r"^config\.weights\.bits: expected an integer, got '3'",
  ),
  "method's argument": (
    _with(methods={"coded": {"method": "icquant", "ratios": 0.1}}),
    r"^config\.methods\.coded\.ratios: icquant has no .*did you mean 'ratio'",
  ),
  "nothing to choose from": (
    _with(sweep={"rtn": {"bits": []}}),
    r"^config\.sweep\.rtn\.bits: expected a list of values, got \[\]",
  ),
  "no lists": (
    _with(sweep={"rtn": [3]}),
    r"^config\.sweep\.rtn: expected a section of named values, got \[3\]",
  ),
  "no bits": (_with(sweep={"rtn": {}}), r"^config\.methods\.rtn: .*'bits'"),
  "no sweep": (
    {k: v for k, v in CONFIG.items() if k != "sweep"},
    r"^config\.sweep: names no method$",
  ),
  "sweep of nothing": (
    _with(sweep={"rtn": {"bit": [3]}}),
    r"^config\.sweep\.rtn\.bit: .*did you mean 'bits'",
  ),
  "twice": (
    _with(sweep={"rtn": {"bits": [3, 3]}}),
    r"^config\.sweep: gives rtn-3bit more than once",
  ),
  # All rows of the sweep would be the same, under different names.
  "bits that do nothing": (
    _with(
      methods={
        "coded": {"method": "icquant", "inner": {"method": "lloyd", "bits": 3}}
      }
    ),
    r"^config\.weights\.bits: .*does not use it",
  ),
  "name": (
    _with(methods={"a/b": "rtn"}, sweep={"a/b": {"bits": [3]}}),
    r"^config\.methods: cannot name a folder 'a/b-3bit'; choose another name",
  ),
  "name that is taken": (
    _with(methods={"float": "keep"}, sweep={"float": {}})
    | {"weights": {"method": "float"}},
    r"^config\.methods: cannot name a folder 'float'",
  ),
  "sensitivity": (
    _with(methods={"rtn": {"method": "rtn", "sensitivity": 1}}),
    r"^config\.methods\.rtn\.sensitivity: expected True or False, got 1",
  ),
  "no sensitivity": (
    _with(methods={"rtn": {"method": "rtn", "sensitivity": True}}),
    r"^config\.methods\.rtn\.sensitivity: needs the section config\.sens",
  ),
  "acts": (
    _with(weights={"acts": "int8"}, acts={"int4": {}}),
    r"^config\.weights\.acts: config\.acts has no 'int8'; did you mean 'int4'",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_config_is_one_clear_error(case):
  config, message = WRONG[case]
  with pytest.raises(configs.InputError, match=message) as error:
    variants.variants(config)
  assert "\n" not in str(error.value)
