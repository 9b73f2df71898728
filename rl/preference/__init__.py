"""Training the reward model on the feedback in the log, and what is reported of it."""
