"""Experiments: each loop once, as `run(config, workdir) -> metrics`.

ptq:         quantizes a pretrained encoder, leaf by leaf, and reports.
sizes:       what a run will store, from shapes alone (the dry run).
evaluate:    measures of a quantized model beside its float original.
configs:     plain data to quantizers, checked before any work.
workdir:     what a run leaves behind, and how it resumes.
checkpoint:  trees of quantized tensors on disk, exact and checked.
report:      the table, the JSON and the CSV of a run.
plots:       the rate-quality plot.
progress:    bars on a terminal, log lines elsewhere.
"""
