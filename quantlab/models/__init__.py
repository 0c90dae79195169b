"""Plain flax models and the code that fills them with published weights.

Nothing here knows of quantization: a method reaches a model from outside,
through its parameters and flax's interceptors.

  bert:               the BERT family of encoders.
    classifier:         the same with a head for classes.
    families:           what tells the published ones apart.
    checkpoint:         published files to an encoder, with its tokenizer.
  causal:             decoder-only language models: BLOOM, Llama.
    positions:          what they know of the order of tokens.
    caches:             what they remember of earlier ones.
    generation:         texts from them, token by token.
    likelihood:         how likely texts are to them.
    causal_families:    what tells the published ones apart.
    causal_checkpoint:  published files to a language model.
  repvgg:             image classifiers whose branches fuse into convolutions.
    repvgg_weights:     published ones.
  denoiser:           masks for noisy speech, by recurrent layers.
    recurrent:          LSTM and GRU layers in which every value has a name.
    stft:               spectra of whole signals and of streams.
  tokens:             texts to token arrays of few shapes.
  weights:            published files to a tree of parameters.
    torch_file:         those that torch wrote, without torch.
"""
