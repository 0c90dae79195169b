import jax
import pytest

import quantlab as ql
from quantlab.experiments import configs, variants

CONFIG = {
  "rules": [
    ["bias", "keep"],
    ["down", {"method": "rtn", "bits": 8}],
    ["kernel$", "weights"],
  ],
  "weights": {
    "method": None,
    "bits": None,
    "granularity": ["per_channel", -1],
    "dtype": "float16",
  },
  "sweep": {"method": ["rtn", "icquant"], "bits": [2, 4]},
  "icquant": {"inner": {"method": "lloyd"}, "ratio": 0.1},
}


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
  assert _names(CONFIG) == [
    "rtn-2bit",
    "rtn-4bit",
    "icquant-2bit",
    "icquant-4bit",
  ]
  assert _names(_with(weights={"bits": 3})) == ["rtn-3bit", "icquant-3bit"]
  one = _with(weights={"method": "lloyd", "bits": 3})
  [variant] = variants.variants(one)
  assert variant[:3] == ("lloyd-3bit", "lloyd", 3)


def test_sweep_of_any_entry_names_it():
  dtypes = {"dtype": ["float16", "float32"]}
  weights = {"method": "rtn", "bits": 3, "dtype": None}
  config = _with(weights=weights, sweep=dtypes)
  assert _names(config) == ["rtn-3bit-float16", "rtn-3bit-float32"]


def test_rules_place_the_quantizers():
  variant = variants.variants(CONFIG)[3]
  placed, unused = variant.place(["up/bias", "up/kernel", "down/kernel"])
  assert unused == []
  assert placed["up/bias"].quantizer is ql.keep()
  w = jax.random.normal(jax.random.key(0), (64, 8))
  assert ql.quantize(placed["down/kernel"].quantizer, w).codes.bits == 8
  q = ql.quantize(placed["up/kernel"].quantizer, w)
  assert q.grid.labels.marks == 6
  assert q.grid.grids[0].levels.shape == (1, 8, 16)
  rules = [placed[p] for p in ("up/kernel", "down/kernel", "up/bias")]
  assert [(r.method, r.bits, r.swept) for r in rules] == [
    ("icquant", 4, True),
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
  "section": (_with(icqant={}), r"^config\.icqant: .*did you mean 'icquant'"),
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
    _with(weights={"method": "icqant"}),
    r"^config\.weights\.method: .*'icqant'; did you mean 'icquant'",
  ),
  "method in the sweep": (
    _with(sweep={"method": ["rtn", "x"]}),
    r"^config\.weights\.method: unknown quantizer 'x'\. Known: keep",
  ),
  "bits": (
    _with(weights={"bits": "3"}),
    r"^config\.weights\.bits: expected an integer, got '3'",
  ),
  "method's argument": (
    _with(icquant={"ratios": 0.1}),
    r"^config\.icquant\.ratios: icquant has no .*did you mean 'ratio'",
  ),
  "nothing to choose from": (
    _with(sweep={"bits": []}),
    r"^config\.weights\.bits: is None, and config\.sweep\.bits lists no",
  ),
  "sweep of nothing": (
    _with(sweep={"bit": [3]}),
    r"^config\.sweep\.bit: .*did you mean 'bits'",
  ),
  "twice": (_with(sweep={"bits": [3, 3]}), r"^config\.sweep: gives rtn-3bit"),
  # All rows of the sweep would be the same, under different names.
  "bits that do nothing": (
    _with(icquant={"inner": {"method": "lloyd", "bits": 3}}),
    r"^config\.weights\.bits: .*does not use it",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_config_is_one_clear_error(case):
  config, message = WRONG[case]
  with pytest.raises(configs.InputError, match=message) as error:
    variants.variants(config)
  assert "\n" not in str(error.value)
