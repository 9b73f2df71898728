"""The reward model: what a user would make of an item, learnt from the feedback in the log."""
