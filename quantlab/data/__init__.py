"""Data for measuring models, and the measures.

ranking:    ranks, recall and MRR of a retrieval.
retrieval:  pairs of a query and the document that answers it.
  stdlib:     the docstrings of the standard library.
"""
