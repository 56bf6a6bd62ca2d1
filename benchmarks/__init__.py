"""How fast the studio is and what it costs: `python -m benchmarks` prints every figure beside its goal."""
