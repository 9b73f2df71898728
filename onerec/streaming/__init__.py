"""Training that goes on day by day: evaluate on a new partition, then train on it, and read no old one again."""
