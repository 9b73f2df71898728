"""Baselines, evaluated by the same code as OneRec."""
