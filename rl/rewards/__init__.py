"""Rewards: item indices in, numbers out."""
