"""Compiles the kernels for accelerators that this machine does not have.

make aot
python -m launch.aot
python -m launch.aot --target=h200 --out=aot.json

Prints what each kernel takes, and fails where one does not compile, spills
registers or wants more memory than there is.
"""

import datetime
import json
import sys

from absl import app, flags

from quantlab.experiments import aot, aot_counts

_TARGET = flags.DEFINE_list("target", list(aot.TARGETS), "What to compile for.")
_CASES = flags.DEFINE_string(
  "cases", "quantlab.experiments.kernel_cases", "The module with the cases."
)
_ONLY = flags.DEFINE_list("only", [], "Names, or starts of names, of cases.")
_OUT = flags.DEFINE_string("out", None, "A JSON file for the counts.")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"no flag: {' '.join(argv[1:])}")
  try:
    reports = {t: aot.run(t, _CASES.value, _ONLY.value) for t in _TARGET.value}
  except (RuntimeError, ValueError) as error:
    sys.exit(f"error: {error}")
  aot_counts.show(reports)
  if _OUT.value:
    results = {
      "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
      "versions": aot.versions(),
      "targets": {
        target: {
          "counts": {
            case: [kernel._asdict() for kernel in kernels]
            for case, kernels in report.counts.items()
          },
          "errors": report.errors,
        }
        for target, report in reports.items()
      },
    }
    with open(_OUT.value, "w", encoding="utf-8") as file:
      json.dump(results, file, indent=1)
  if any(report.faults() for report in reports.values()):
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
