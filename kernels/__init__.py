"""Fast paths behind plain PyTorch references. Imports nothing else of this project."""
