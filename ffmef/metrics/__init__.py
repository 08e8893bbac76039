"""Fusion metrics, equal to the benchmark toolkits."""
