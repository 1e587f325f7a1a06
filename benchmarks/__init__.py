"""Measurements; ``python -m benchmarks`` runs them and prints tables. Never part of the test suite."""
