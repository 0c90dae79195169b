"""Plain flax models and the code that fills them with published weights.

Nothing here knows of quantization: a method reaches a model from outside,
through its parameters and flax's interceptors.

  bert:        the BERT family of encoders.
  checkpoint:  published files to a model, its parameters and its tokenizer.
  families:    what tells the published families apart.
  hub:         finds that folder: a pip package, a path or a hub id.
  tokens:      texts to token arrays of few shapes.
  weights:     safetensors to a tree of parameters.
"""
