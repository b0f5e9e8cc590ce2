"""Benchmarks: they run in a checkout and are not part of the wheel."""
