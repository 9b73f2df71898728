"""Evaluation: one protocol for every recommender, full ranking at item level."""
