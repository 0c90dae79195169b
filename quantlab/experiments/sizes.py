"""What a run will store, from shapes alone.

Under tracing, what depends on the data has the size of the worst case. Here it
is replaced by what is expected:

  gap code      the closed form of `core.gaps`, for outliers at random places;
  exact part    nothing: how many outliers there are, only the data say. Such
                sizes are lower bounds.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import jax

from quantlab.core import gaps, grids, qtensor, sparse
from quantlab.experiments import configs, variants
from quantlab.transforms import compose, plan

EXACT, EXPECTED, AT_LEAST = "", "≈", "≥"
"""How sure a size is."""


class Size(NamedTuple):
  """A leaf and what it takes.

  Attributes:
    path: of the leaf.
    shape: of the leaf.
    rule: what places the leaf.
    bits: stored, of all its elements.
    sure: `EXACT`, `EXPECTED` or `AT_LEAST`.
    float_bits: of the leaf as it is.
  """

  path: str
  shape: tuple[int, ...]
  rule: variants.Rule
  bits: float
  sure: str
  float_bits: int

  @property
  def kept(self) -> bool:
    """Whether the leaf stays as it is."""
    return self.rule.quantizer is compose.keep()


def sizes(variant: variants.Variant, leaves: Mapping[str, Any]) -> list[Size]:
  """The size of every leaf under a variant.

  Args:
    variant: the plan.
    leaves: arrays or `jax.ShapeDtypeStruct` by path.

  Raises:
    InputError: a leaf matches no rule, or does not fit its quantizer; it starts
      with the leaf's path.
  """
  placed, _ = variant.place(leaves)
  seen: dict[Any, tuple[float, str]] = {}
  found = []
  for path, rule in placed.items():
    leaf = leaves[path]
    # Layers repeat: one trace serves all leaves of a shape.
    key = rule.quantizer, leaf.shape, leaf.dtype
    if key not in seen:
      with configs.explained(), plan.naming(path):
        seen[key] = expected(shape_of(rule, leaf))
    found.append(Size(path, leaf.shape, rule, *seen[key], qtensor.nbits(leaf)))
  return found


def shape_of(rule: variants.Rule, leaf: Any) -> Any:
  """What a rule makes of a leaf, as shapes."""
  leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  return jax.eval_shape(
    functools.partial(plan.quantize_leaf, rule.quantizer), leaf
  )


def expected(q: Any) -> tuple[float, str]:
  """Stored bits of a traced tensor, and how sure they are."""
  if isinstance(q, qtensor.Window):
    return expected(q.part)
  if isinstance(q, qtensor.Sum):
    parts = [expected(part) for part in q.parts]
    return sum(bits for bits, _ in parts), _least_sure(s for _, s in parts)
  grid = getattr(q, "grid", None)
  if isinstance(grid, grids.Raw) and grid.mask.ndim:
    return 0, AT_LEAST
  coded = [x for x in jax.tree.leaves(q, is_leaf=_is_coded) if _is_coded(x)]
  bits = qtensor.nbits(q) + sum(
    _gap_code_bits(labels) - qtensor.nbits(labels.symbols) for labels in coded
  )
  return bits, EXPECTED if coded else EXACT


def least_sure(found: Sequence[Size]) -> str:
  """How sure the sum of some sizes is: as its least sure part."""
  return _least_sure(size.sure for size in found)


def _least_sure(marks: Iterable[str]) -> str:
  return max(marks, key=(EXACT, EXPECTED, AT_LEAST).index, default=EXACT)


def _is_coded(x: Any) -> bool:
  return isinstance(x, sparse.GapCoded)


def _gap_code_bits(labels: sparse.GapCoded) -> float:
  dim = math.prod(labels.dims)
  each = gaps.expected_bits(labels.marks / dim, labels.bits, dim)
  return each * dim * math.prod(labels.outer)


def peak_bytes(found: Sequence[Size]) -> float:
  """An estimate of the memory that quantization takes at most.

  The weights, the packed model, and four times the largest leaf to work in.
  """
  quantized = [size for size in found if not size.kept]
  largest = max((size.float_bits for size in quantized), default=0)
  packed = sum(size.bits for size in quantized)
  return (sum(s.float_bits for s in found) + packed + 4 * largest) / 8
