"""quantlab: neural-network quantizers as composable functions of pytrees.

import quantlab as ql

plan = ql.by_path([(r"kernel$", ql.icquant(ql.rtn(3))), (r".*", ql.keep())])
qparams = ql.quantize(plan, params)
logits = ql.apply(model, {"params": qparams}, x)
"""

from quantlab.apply import (
  apply,
  calibrate,
  check_uses,
  grad_state,
  grad_tap,
  overwritten,
  sites,
)
from quantlab.checkpoint import restore, save
from quantlab.core.base import (
  INT2,
  INT3,
  INT4,
  INT5,
  INT6,
  INT7,
  INT8,
  UINT2,
  UINT3,
  UINT4,
  UINT5,
  UINT6,
  UINT7,
  UINT8,
  IntSpec,
  Observer,
  Quantizer,
  Range,
  State,
)
from quantlab.core.flips import flip_bits
from quantlab.core.gates import Gate, gates
from quantlab.core.numerics import (
  chunks,
  per_block,
  per_channel,
  per_output,
  per_tensor,
)
from quantlab.core.parameterization import (
  Learned,
  beta_gamma,
  beta_gamma_sigmoid,
  bound,
  min_max,
  scale_offset,
  scale_zero,
  step,
)
from quantlab.core.qtensor import (
  QTensor,
  Sum,
  Window,
  bits_per_weight,
  dequantize,
  lift,
  nbits,
)
from quantlab.kernels.form import prepare
from quantlab.methods import rnn_mixed
from quantlab.methods.cfws import cfws
from quantlab.methods.cgmq import cgmq, guided
from quantlab.methods.easyquant import easyquant, exact_outliers
from quantlab.methods.icquant import icquant
from quantlab.methods.lloyd import lloyd
from quantlab.methods.lsq import lsq, lsq_plus, mean_magnitude, three_sigma
from quantlab.methods.randbet import rquant
from quantlab.methods.rtn import rtn
from quantlab.methods.splitquant import clusterquant, splitquant
from quantlab.transforms.compose import keep, stacked, stage
from quantlab.transforms.divergence import kl, kl_improved
from quantlab.transforms.estimate import (
  absmax,
  by_gradient,
  fixed,
  minmax,
  mse,
  mse_ends,
  mse_golden,
  percentile,
)
from quantlab.transforms.fit import fit, tables
from quantlab.transforms.gated import gated
from quantlab.transforms.labels import beyond, clusters, outliers, tails
from quantlab.transforms.learn import integer_zero, learned, project
from quantlab.transforms.levels import kmeans
from quantlab.transforms.noise import bit_errors
from quantlab.transforms.observe import (
  deviations,
  ema,
  extremes,
  histogram,
  tracked,
)
from quantlab.transforms.partition import (
  branches,
  exact,
  label,
  masks,
  split,
)
from quantlab.transforms.plan import Plan, by_path, chain, quantize
from quantlab.transforms.rounding import nearest, stochastic
from quantlab.transforms.sensitivity import sensitivity
from quantlab.transforms.store import cast, gap_code, pack
