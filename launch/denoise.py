"""Enhances a recording of speech as a stream, with a trained TinyDenoiser.

python -m launch.denoise --checkpoint=runs/schemes-gru128/mixed-max \
  --input=noisy.wav --output=clean.wav
"""

import sys

from absl import app, flags

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


def main(argv: list[str]) -> None:
  try:
    if len(argv) > 1:
      raise configs.InputError(f"no flag: {' '.join(argv[1:])}")
    found = denoise.run(
      _CHECKPOINT.value,
      _INPUT.value,
      _OUTPUT.value,
      _WORKDIR.value,
      resample=_RESAMPLE.value,
    )
  except configs.InputError as error:
    sys.exit(f"error: {error}")
  print(
    f"{_OUTPUT.value}: {found['seconds']:.2f} s of sound, "
    f"{found['ms_per_frame']:.2f} ms a frame of 6.25 ms, "
    f"real-time factor {found['real_time_factor']:.3f}; "
    f"spectrograms in {found['picture']}"
  )


if __name__ == "__main__":
  app.run(main)
