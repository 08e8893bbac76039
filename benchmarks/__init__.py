"""The benchmark suite: ``pytest benchmarks/ -q`` measures, ``python -m benchmarks.report`` draws."""
