"""A synthetic short-video world: items, users whose tastes drift, and outcomes of known probability."""
