"""Benches: each measures both sides in one run and prints the figures, for people or (`--json`) for machines."""
