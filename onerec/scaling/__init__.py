"""Scaling laws: a ladder of sizes trained for compute budgets, a law fitted to it, the papers' own fits beside it."""
