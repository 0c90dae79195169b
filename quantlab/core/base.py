"""The types that everything else composes.

A `Quantizer` is a pair of pure functions, like an optax transformation: `init`
builds its `State`, `apply` refines a `QTensor` into a `QTensor`. What an
optimizer moves (`State.learned`) and what `apply` itself moves (`State.stats`)
never mix: `apply` returns stats only.

Shape letters: R rows, one per grid cell; E elements per row.
"""

from collections.abc import Callable
import dataclasses
import functools
import inspect
from typing import (
  Any,
  NamedTuple,
  ParamSpec,
  Protocol,
  TypeVar,
  dataclass_transform,
)

import jax

Array = jax.Array
PyTree = Any
P = ParamSpec("P")
T = TypeVar("T")


def interned(function: Callable[P, T]) -> Callable[P, T]:
  """Makes equal arguments give the very same object, not another like it.

  Programs are compiled once for each quantizer, and found again by its
  identity: `quantize(rtn(4), a)` and `quantize(rtn(4), b)` share one.

  Args:
    function: pure; takes what is hashable.

  Returns:
    The function, which raises `TypeError` for an argument that is not hashable.

  Example:
    >>> import quantlab as ql
    >>> ql.rtn(4) is ql.rtn(4)
    True
  """
  return _Interned(function)


class _Interned:
  """A function that keeps its results; doctest and help see the function."""

  def __init__(self, function: Callable[..., Any]):
    functools.update_wrapper(self, function)
    self._function = function
    self._kept = functools.lru_cache(maxsize=512, typed=True)(function)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    try:
      return self._kept(*args, **kwargs)
    except TypeError:
      self._refuse(args, kwargs)
      raise  # it came from the function itself

  def __get__(self, instance: Any, owner: Any = None) -> Any:
    """Makes it a routine to `inspect`, and so to `help`."""
    return self

  def __repr__(self) -> str:
    return repr(self._function)

  def _refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    names = [*inspect.signature(self._function).parameters]
    named = [(names[min(i, len(names) - 1)], x) for i, x in enumerate(args)]
    for name, value in [*named, *kwargs.items()]:
      try:
        hash(value)
      except TypeError:
        message = (
          f"{self._function.__name__}: {name}={value!r} is a"
          f" {type(value).__name__}; expected something hashable, as a number,"
          " a string, a tuple or a quantizer"
        )
        raise TypeError(message) from None


def static(**kwargs: Any) -> Any:
  """A dataclass field that is metadata: part of the type, not of the data."""
  return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(
  frozen_default=True, field_specifiers=(static, dataclasses.field)
)
def pytree(cls: type[T]) -> type[T]:
  """Makes a class a frozen dataclass that jax sees as a pytree."""
  return jax.tree_util.register_dataclass(
    dataclasses.dataclass(frozen=True)(cls)
  )


@dataclasses.dataclass(frozen=True)
class IntSpec:
  """The integers a code can be.

  Attributes:
    bits: storage bits of one code, 1 to 16.
    signed: codes are two's complement rather than starting at 0.
    symmetric: the grid's zero is the code 0 exactly; no zero point is fitted.
    narrow: a signed symmetric spec drops the lowest code, so 4 bits are
      -7..7 with step absmax/7. With `narrow=False` they are -8..7 with step
      absmax/7.5. Both conventions are in use; it has no effect elsewhere.
    tight: a symmetric spec that is not narrow takes the step at which both
      ends of the range have codes, max(hi/7, -lo/8): the third convention.
    exact_zero: the zero point is an integer, so 0 is a level, and the range is
      extended to hold it. Without it both ends of the range are levels. It has
      no effect on a symmetric spec, whose zero is exact anyway.

  Example:
    >>> IntSpec(4).lo, IntSpec(4).hi
    (-8, 7)
    >>> IntSpec(4, symmetric=True).lo, IntSpec(4, signed=False).hi
    (-7, 15)
  """

  bits: int
  _: dataclasses.KW_ONLY
  signed: bool = True
  symmetric: bool = False
  narrow: bool = True
  tight: bool = False
  exact_zero: bool = False

  def __post_init__(self):
    if isinstance(self.bits, bool) or not isinstance(self.bits, int):
      raise TypeError(f"bits must be an integer, got {self.bits!r}")
    if not 1 <= self.bits <= 16:
      raise ValueError(f"bits must be in 1..16, got {self.bits}")
    if self.bits == 1 and self.signed and self.symmetric and self.narrow:
      raise ValueError("a narrow symmetric 1-bit spec holds only the code 0")
    if self.tight and (self.narrow or not (self.signed and self.symmetric)):
      raise ValueError(f"only wide signed symmetric codes are tight: {self}")

  @property
  def lo(self) -> int:
    """The smallest code."""
    if not self.signed:
      return 0
    return -(2 ** (self.bits - 1)) + int(self.symmetric and self.narrow)

  @property
  def hi(self) -> int:
    """The largest code."""
    return 2 ** (self.bits - self.signed) - 1

  @property
  def absmax_code(self) -> float:
    """The (possibly half-integer) code a symmetric spec gives to absmax."""
    half = self.signed and not (self.narrow or self.tight)
    return self.hi + (0.5 if half else 0.0)


INT2, INT3, INT4, INT5, INT6, INT7, INT8 = map(IntSpec, range(2, 9))
UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8 = (
  IntSpec(bits, signed=False) for bits in range(2, 9)
)


class Range(NamedTuple):
  """The interval a grid covers: `lo` and `hi`, `[R]` float each."""

  lo: Array
  hi: Array


class State(NamedTuple):
  """What a quantizer carries between steps.

  Attributes:
    learned: moved by an optimizer, e.g. a scale that is trained.
    stats: moved by `Quantizer.apply`, e.g. a running range.
  """

  learned: PyTree = ()
  stats: PyTree = ()


@dataclasses.dataclass(frozen=True)
class Stateless:
  """The `init` of a quantizer that keeps nothing between steps.

  Whoever composes it need not run what comes before it to know its state.

  Attributes:
    state: it, a structure without arrays.

  Example:
    >>> Stateless()(q=None)
    State(learned=(), stats=())
  """

  state: State = dataclasses.field(default_factory=State)

  def __call__(self, q: Any) -> State:
    """The state, whatever the tensor."""
    return self.state


class Quantizer(NamedTuple):
  """Refines a quantized tensor into a quantized tensor.

  Both functions also take a float array, which counts as the trivial `QTensor`
  whose codes are its values.

  Attributes:
    init: `init(q) -> State`; a `Stateless` where nothing is kept.
    apply: `apply(q, state, key=None) -> (q, stats)`. `key` is `None` or a PRNG
      key; a random stage raises `ValueError` without one.
    settle: `settle(q, state) -> (quantizer, state)`, for a quantizer whose form
      depends on its state: what it is once that is final, to store what it
      gives. None where it is itself.
  """

  init: Callable[[Any], State]
  apply: Callable[..., tuple[Any, PyTree]]
  settle: Callable[[Any, State], tuple["Quantizer", State]] | None = None


class Seen(NamedTuple):
  """The statistics of `tracked`.

  Attributes:
    count: int32, tensors observed.
    stats: the observer's.
  """

  count: Array
  stats: PyTree


class Since(NamedTuple):
  """The statistics of an observer that estimates every so often.

  Attributes:
    steps: int32 `[R]`, tensors since the range was estimated.
    range: it.
  """

  steps: Array
  range: Range


class Moments(NamedTuple):
  """The statistics of an observer of means and deviations, each `[R]`.

  Attributes:
    count: int32, tensors seen.
    mean: mean over the tensors of their means.
    std: mean over the tensors of their standard deviations.
  """

  count: Array
  mean: Array
  std: Array


class Estimator(Protocol):
  """Chooses the range of every row, of each on its own."""

  def __call__(self, rows: Array, weight: Array, spec: IntSpec) -> Range:
    """Estimates `[R]` ranges.

    Args:
      rows: `[R, E]` float values.
      weight: `[R, E]` bool, or floats of at least 0: how often an element
        counts. What has weight 0 is not to be covered: it is a value that some
        other part of a decomposition stores.
      spec: the codes the range will be divided into.

    Returns:
      The range of each row; for a row without weight, `(0, 0)`.
    """
    ...


class Observer(NamedTuple):
  """Estimates ranges from what it has seen in many tensors, row by row.

  Attributes:
    init: `init(num_rows, dtype) -> stats`, having seen nothing.
    update: `update(stats, rows, weight, spec) -> stats`, with arguments as an
      `Estimator` takes them. What is not finite leaves the stats as they were.
    range: `range(stats, spec) -> Range`.
  """

  init: Callable[..., PyTree]
  update: Callable[..., PyTree]
  range: Callable[..., Range]


class LevelFitter(Protocol):
  """Places the levels of every row's codebook, of each on its own."""

  def __call__(self, rows: Array, weight: Array, levels: int) -> Array:
    """Fits ascending tables `[R, levels]` to rows and weights `[R, E]`."""
    ...


class Labeler(Protocol):
  """Assigns each element of a tensor to a part."""

  def __call__(self, x: Array, mask: Array) -> Any:
    """Labels `x`: a plane of small integers, or a stored form of one."""
    ...


Granularity = Callable[[tuple[int, ...]], tuple[int, ...]]
"""Maps a tensor's shape to its grid's: same rank, each dimension a divisor."""
