"""The endpoint: recommendations over HTTP from a bundle, by the evaluator's own search."""
