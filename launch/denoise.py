"""Enhances a recording of speech with a trained TinyDenoiser, as a stream.

python -m launch.denoise --checkpoint=runs/schemes-gru128/mixed-max \
  --input=noisy.wav --output=clean.wav
"""

import sys

from absl import app, flags, logging

from quantlab.experiments import configs, denoise

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Folder of a float model or of a variant.",
  required=True,
)
_INPUT = flags.DEFINE_string(
  "input", None, "Sound file, mono, 16 kHz.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "WAV to write.", required=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the picture; by default the output's."
)
_RESAMPLE = flags.DEFINE_bool(
  "resample", False, "Take an input of another rate."
)
_INTEGERS = flags.DEFINE_bool(
  "integers",
  False,
  "Run the recurrent layers of a mixed scheme in integers, over the whole file,"
  " and say how far that is from fake quantization.",
)


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # those of libraries
  try:
    if len(argv) > 1:
      raise configs.InputError(f"no flag: {' '.join(argv[1:])}")
    lines = denoise.run(
      _CHECKPOINT.value,
      _INPUT.value,
      _OUTPUT.value,
      _WORKDIR.value,
      resample=_RESAMPLE.value,
      in_integers=_INTEGERS.value,
    )
  except configs.InputError as error:
    sys.exit(f"error: {error}")
  print(*lines, sep="\n")


if __name__ == "__main__":
  app.run(main)
