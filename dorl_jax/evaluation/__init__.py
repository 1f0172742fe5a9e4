"""Judging latent vectors: classifiers trained on one laboratory, tested on every other."""
