"""The training steps of `steps` for ResNet-8, by PyTorch.

Weights and inputs of all layers go through PyTorch's own learnable fake
quantization, which is compiled in C++: what a step of ours is compared with.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


class _Fake(nn.Module):
  """A learned step and zero point for a tensor."""

  def __init__(self, bits: int, signed: bool):
    super().__init__()
    self.ends = -signed * 2 ** (bits - 1), 2 ** (bits - signed) - 1
    self.scale = nn.Parameter(torch.tensor([0.1]))
    self.zero = nn.Parameter(torch.zeros(1))

  def forward(self, x: Any) -> Any:
    return torch._fake_quantize_learnable_per_tensor_affine(
      x, self.scale, self.zero, *self.ends, 1.0
    )


class _Conv(nn.Module):
  """A convolution and a norm."""

  def __init__(self, shape: tuple[int, int, int], stride: int, fake: Any):
    super().__init__()
    inside, outside, window = shape
    self.conv = nn.Conv2d(
      inside, outside, window, stride, window // 2, bias=False
    )
    self.norm = nn.BatchNorm2d(outside)
    self.weight, self.act = fake(True), fake(False)

  def forward(self, x: Any) -> Any:
    w = self.weight(self.conv.weight)
    return self.norm(self.conv._conv_forward(self.act(x), w, None))


class _Residual(nn.Module):
  """The block of `models.cnn.Residual`."""

  def __init__(self, inside: int, outside: int, stride: int, fake: Any):
    super().__init__()
    self.first = _Conv((inside, outside, 3), stride, fake)
    self.second = _Conv((outside, outside, 3), 1, fake)
    same = inside == outside and stride == 1
    self.shortcut = (
      nn.Identity() if same else _Conv((inside, outside, 1), stride, fake)
    )

  def forward(self, x: Any) -> Any:
    y = self.second(torch.relu(self.first(x)))
    return torch.relu(self.shortcut(x) + y)


def _resnet8(fake: Any) -> nn.Module:
  return nn.Sequential(
    *(_Conv((3, 16, 3), 1, fake), nn.ReLU()),
    *(_Residual(16, 16, 1, fake), _Residual(16, 32, 2, fake)),
    _Residual(32, 64, 2, fake),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
  )


def steps(batch: int, size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
  """Names and functions: a step of SGD on `[batch, 3, size, size]` images."""
  rng = np.random.default_rng(0)
  x = torch.tensor(rng.standard_normal((batch, 3, size, size), np.float32))
  labels = torch.arange(batch) % 10
  for name, fake in {
    "PyTorch float": lambda signed: nn.Identity(),
    "PyTorch learnable W4A4": lambda signed: _Fake(4, signed),
  }.items():
    model = _resnet8(fake)
    optimizer = torch.optim.SGD(
      model.parameters(), 1e-3, momentum=0.9, nesterov=True
    )

    def step(model=model, optimizer=optimizer):
      optimizer.zero_grad()
      loss = nn.functional.cross_entropy(model(x), labels)
      loss.backward()
      optimizer.step()
      return loss.item()

    yield name, step
