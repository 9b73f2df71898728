"""The reward model: what a user would make of an item. Trained by `rl.preference`, read by rewards and by serving."""
