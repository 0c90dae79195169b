"""Enhances a recording of speech with a trained TinyDenoiser, as a stream.

python -m launch.denoise --checkpoint=runs/schemes-gru128/mixed-8bit-max \
  --input=noisy.wav --output=clean.wav

The spectrograms go into --workdir, by default the folder of the output.
"""

import sys

from absl import app, flags, logging

from quantlab.experiments import configs, flag
from quantlab.experiments.speech import denoise

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Folder of a float model or of a variant."
)
_INPUT = flags.DEFINE_string("input", None, "Sound file, mono, 16 kHz.")
_OUTPUT = flags.DEFINE_string("output", None, "WAV file to write.")
_RESAMPLE = flags.DEFINE_bool(
  "resample", False, "Take an input of another rate."
)
_INTEGERS = flags.DEFINE_bool(
  "integers",
  False,
  "Run the recurrent layers of a mixed scheme in integers, over the whole file,"
  " and say how far that is from fake quantization.",
)


def _given(holder: flags.FlagHolder[str | None]) -> str:
  if not holder.value:
    raise configs.InputError(f"--{holder.name} is missing")
  return holder.value


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # those of libraries
  try:
    if len(argv) > 1:
      raise configs.InputError(f"no flag: {' '.join(argv[1:])}")
    lines = denoise.run(
      _given(_CHECKPOINT),
      _given(_INPUT),
      _given(_OUTPUT),
      flag.WORKDIR.value,
      resample=_RESAMPLE.value,
      in_integers=_INTEGERS.value,
    )
  except configs.InputError as error:
    sys.exit(f"error: {error}")
  print(*lines, sep="\n")


if __name__ == "__main__":
  app.run(main)
