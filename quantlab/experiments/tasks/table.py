"""The tasks by the name that a config gives them."""

from quantlab.experiments import configs
from quantlab.experiments.tasks import (
  base,
  choices,
  classification,
  images,
  perplexity,
  retrieval,
  speech,
)

KINDS = {
  "choices": choices.KIND,
  "classification": classification.KIND,
  "images": images.KIND,
  "perplexity": perplexity.KIND,
  "retrieval": retrieval.KIND,
  "speech": speech.KIND,
}


def kind(name: object) -> base.Kind:
  """Finds a task.

  Raises:
    InputError: there is none of that name.

  Example:
    >>> kind("retrieval").metrics[0].key
    'cosine'
  """
  if name not in KINDS:
    raise configs.unknown("config.task", f"unknown task {name!r}", name, KINDS)
  return KINDS[name]
