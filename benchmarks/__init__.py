"""How fast, how large, and next to whom: what scripts/benchmark.py measures."""
