"""Next-token pre-training on transformers' Trainer."""
