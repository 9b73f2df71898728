"""Figures measured in one run on one machine, each printed by one command."""
