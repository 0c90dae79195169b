"""Data for measuring models, and the measures.

tables:          tables in files, in folders and on the hub.
retrieval:       pairs of a query and the document that answers it.
  stdlib:          the docstrings of the standard library.
  ranking:         ranks, recall and MRR.
images:          pictures and the class of each.
  labelled:        where they come from.
  pixels:          from a picture to the array that a model reads.
classification:  texts and the class of each.
language:        running text, and windows of it.
choices:         questions with several answers.
speech:          utterances with and without noise.
  sound:           files of sound.
  synthetic_speech:  speech and noise made by rule.
"""
