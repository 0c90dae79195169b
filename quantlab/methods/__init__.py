"""One paper, one file: each method is a sentence over the primitives."""
