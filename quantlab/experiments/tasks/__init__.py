"""Tasks: what models are judged on, one file each; `table` lists them.

base:            what a task is, and what the job asks of it.
retrieval:       sentence encoders that find the answer to a query.
images:          image classifiers.
classification:  text classifiers.
choices:         language models that choose an answer.
perplexity:      language models.
logits, spare:   what several of them share.
table:           the tasks by the name that a config gives them.

To add one, write a file that ends in a `base.Kind`, and a line in `table`.
"""
