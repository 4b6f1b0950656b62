"""Measurements beside their bars: ``python -m benchmarks.<name> --check``."""
