"""Experiments: each loop once, as `run(config, workdir) -> metrics`.

ptq:          makes the variants of a sweep, leaf by leaf, and judges them.
tasks:        what models are judged on: retrieval, images, ...
variants:     the rows of a sweep, from a config.
calibration:  sensitivities, and ranges of activations.
chooser:      which layer is quantized how, for so many bytes.
schemes:      what a run left, ready to run.
speech:       recordings that are enhanced, in streams and in integers.
leafwise:     quantizes a tree, each finished leaf on disk.
evaluate:     measures of a quantized model beside its float original.
train:        trains a classifier.
generation:   speed and memory of whole models from packed weights.
bench:        speed on this machine, as ratios in one run.
aot:          compiles kernels for accelerators that are not here;
              aot_counts says what they take, kernel_cases which.
sizes:        what a run will store, from shapes alone (the dry run).
configs:      plain data to functions, checked before any work.
workdir:      what a run leaves behind, and how it resumes.
pareto:       which variants are worth their bits.
report:       the tables, the JSON and the CSV of a run.
plots:        the rate-quality plot.
programs:     lets go of compiled programs in long runs.
progress:     bars on a terminal, log lines elsewhere.
"""
