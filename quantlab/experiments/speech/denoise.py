"""Enhances a sound file with a stored TinyDenoiser.

Shape letters: S samples, T frames, F bins.
"""

from collections.abc import Callable
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import quantlab as ql
from quantlab.data import sound
from quantlab.experiments import configs, evaluate, schemes
from quantlab.experiments.speech import integers, spectrograms
from quantlab.models import denoiser, stft

Array = jax.Array


class State(NamedTuple):
  """What is carried from block to block."""

  carry: denoiser.Carry
  stream: stft.Stream


Step = Callable[[State, np.ndarray], tuple[State, Array, Array]]
"""`step(state, block[100]) -> (state, mask[F], block[100])`."""


class Enhanced(NamedTuple):
  """What a stream made of a signal.

  Attributes:
    signal: `[S]`, where the input was: the delay is taken out.
    masks: `[T, F]`, of the frames of `stft.analyse`.
    seconds: that the steps took, without compilation.
  """

  signal: np.ndarray
  masks: np.ndarray
  seconds: float


def stepper(scheme: schemes.Scheme) -> tuple[Step, State]:
  """The compiled step of a stream, and its first state.

  Weights are decoded once, not for each frame.

  Args:
    scheme: of a TinyDenoiser.

  Raises:
    ValueError: it is that of another model.
  """
  model = denoiser.of_params(scheme.params)

  @jax.jit
  def step(params, acts, state, block):
    stream, spectrum = state.stream.read(block)
    frame = jnp.abs(spectrum)[None, None]
    variables: Any = {"params": params}
    found = ql.apply(
      model, variables, frame, state.carry, acts=scheme.acts, state=acts
    )
    masks, carry = found if scheme.acts is None else found[0]
    stream, block = stream.write(spectrum * masks[0, 0])
    return State(carry, stream), masks[0, 0], block

  params = evaluate.decode(scheme.params)
  start = State(model.start(1), stft.Stream.start())
  return lambda state, block: step(params, scheme.state, state, block), start


def enhance(step: Step, state: State, signal: np.ndarray) -> Enhanced:
  """Feeds a signal to a stream, block by block, as a device would.

  Args:
    step: from `stepper`.
    state: the first one.
    signal: `[S]` float32, at 16 kHz.
  """
  frames = 1 + (len(signal) + stft.SIZE) // stft.HOP
  padded = np.zeros(frames * stft.HOP, np.float32)
  heard = signal[: len(padded) - stft.HOP]
  padded[stft.HOP : stft.HOP + len(heard)] = heard
  blocks = padded.reshape(frames, stft.HOP)
  jax.block_until_ready(step(state, blocks[0]))  # compiles
  masks, out = [], []
  start = time.perf_counter()
  for block in blocks:
    state, mask, enhanced = step(state, block)
    masks.append(mask)
    out.append(np.asarray(enhanced))  # waits, as who listens does
  seconds = time.perf_counter() - start
  late = stft.DELAY + stft.HOP
  return Enhanced(
    np.concatenate(out)[late : late + len(signal)], np.stack(masks), seconds
  )


def run(
  checkpoint: str,
  source: str,
  output: str,
  folder: str | None = None,
  *,
  resample: bool = False,
  in_integers: bool = False,
) -> list[str]:
  """Enhances a file as a stream, and draws its spectrogram before and after.

  Args:
    checkpoint: a folder that `schemes.restore` takes.
    source: a mono sound file of 16 kHz.
    output: the WAV file to write.
    folder: of the picture, `<name of output>.png`; by default the output's.
    resample: takes a file of another rate.
    in_integers: runs the whole file instead, with the recurrent layers of a
      mixed scheme in integers alone, beside fake quantization; see `integers`.

  Returns:
    Lines that say what was done: the files; the real-time factor, which is time
    of computing for time of sound, below 1 where the stream keeps up, or how
    far integers are from fake quantization.

  Raises:
    InputError: a file cannot be read, is not what it should be, or cannot be
      written; names it.
  """
  with configs.explained():
    signal = sound.read(source, resample=resample)
    scheme = schemes.restore(checkpoint)
    if in_integers:
      enhanced, masks, line = _integers(scheme, signal)
    else:
      enhanced, masks, line = _stream(scheme, signal)
    sound.write(output, enhanced)
    place = pathlib.Path(folder or pathlib.Path(output).parent).expanduser()
    picture = place / f"{pathlib.Path(output).stem}.png"
    place.mkdir(parents=True, exist_ok=True)
    spectrograms.draw(signal, enhanced, masks, picture)
  return [f"{output}: enhanced; spectrograms are in {picture}", line]


Result = tuple[np.ndarray, np.ndarray, str]
"""Samples, masks, and what to say."""


def _stream(scheme: schemes.Scheme, signal: np.ndarray) -> Result:
  found = enhance(*stepper(scheme), signal)
  seconds = len(signal) / sound.RATE
  frame, taken = 1e3 * stft.HOP / sound.RATE, 1e3 * found.seconds
  line = (
    f"{seconds:.2f} s of sound, {taken / len(found.masks):.2f} ms a frame of "
    f"{frame:g} ms, real-time factor {found.seconds / seconds:.3f}"
  )
  return found.signal, found.masks, line


def _integers(scheme: schemes.Scheme, signal: np.ndarray) -> Result:
  spectra = stft.analyse(signal)
  found = integers.compare(scheme, jnp.abs(jnp.asarray(spectra))[None])
  masks = found.masks[0]
  line = (
    "recurrent layers in integers: after a frame from equal states they are at "
    f"most {found.step} apart from fake quantization; over the file "
    f"{found.equal:.2%} of hidden codes are equal, {found.within_one:.2%} "
    f"within one, at most {found.most} apart; mask RMSE between the two "
    f"{found.mask_rmse:.5f}"
  )
  return stft.synthesise(spectra * masks, len(signal)), masks, line
