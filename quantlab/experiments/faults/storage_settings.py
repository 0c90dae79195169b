"""What a config of `storage` may say, checked before any work."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from quantlab.experiments import configs
from quantlab.experiments.faults import bit_errors


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a config may say.

  Attributes:
    formats: quantizers of the kernels, by name.
    seed: of the model and its batches.
    source: of the images, as `data.images` takes it.
    split: that is evaluated; `"train"` is trained on.
    widths: of the hidden layers.
    steps: of the training.
    batch_size: of the training.
    learning_rate: of its first step.
    rates: probabilities that a stored bit is wrong, ascending.
    at: the rate of the table and of the picture; one of them.
    patterns: of bit errors; seeds from 100 on.
    remedies: pairs of the rows of a gap-code stream and of the copies of each
      symbol, to compare.
    samples: single wrong bits of gap codes.
  """

  formats: dict
  seed: int = 0
  source: str = "digits"
  split: str = "test"
  widths: list = dataclasses.field(default_factory=lambda: [256, 256])
  steps: int = 1000
  batch_size: int = 64
  learning_rate: float = 0.05
  rates: list = dataclasses.field(
    default_factory=lambda: [1e-5, 1e-4, 1e-3, 1e-2]
  )
  at: float = 1e-3
  patterns: int = 20
  remedies: list = dataclasses.field(
    default_factory=lambda: [[128, 1], [128, 3], [8, 1], [1, 1]]
  )
  samples: int = 500

  def __post_init__(self):
    bit_errors.check(self.rates)
    if self.at not in self.rates:
      raise ValueError(f"at={self.at} is none of rates={self.rates}")
    if not self.formats:
      raise ValueError("formats: name at least one")
    for name in ("steps", "batch_size", "patterns", "samples"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    if any(type(n) is not int or n < 1 for n in self.widths):
      raise ValueError(f"widths={self.widths} must be at least 1")
    for pair in self.remedies:
      if not _is_remedy(pair):
        raise ValueError(
          f"remedies: a pair of rows and an odd number of copies, got {pair!r}"
        )


def _is_remedy(pair: Any) -> bool:
  whole = isinstance(pair, list) and [type(n) for n in pair] == [int, int]
  return whole and min(pair) > 0 and pair[1] % 2 == 1


def read(config: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
  """Checks a config; gives its settings, and its quantizers by name.

  Raises:
    InputError: names the entry, the value and what is known there.
  """
  bound = configs.bind(Settings, config, "config", name="the study")
  with configs.explained():
    settings = Settings(*bound.args, **bound.kwargs)
  return settings, {
    name: configs.build(call, f"config.formats.{name}")
    for name, call in settings.formats.items()
  }
