"""How fast, how large, beside whom: what scripts/benchmark.py measures?"""
