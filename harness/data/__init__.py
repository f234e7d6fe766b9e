"""Datasets, their preparation, and what happens to clouds on their way to the encoder."""
