"""What measured runs say about the loss of others."""

# Written by: python scripts/benchmark.py prediction
# 83 runs of 16 texts in docs/measured-runs.csv, the last of 2026-11-30
WEIGHTS = {
    "one": -1.648,
    "log_parameters": 0.0048711,
    "inverse_power_of_worth": 0.6627,
    "log_text": 0.072251,
    "subwords": 0.028363,
}
BAR = 0.07755  # in logs: 9 of 10 runs of an unknown text are not farther off
# The least and the most of what was measured
MEASURED = {
    "difficulty": (1.2017, 2.7321),
    "parameters": (812416, 14005504),
    "characters seen": (92160, 36903321.6),
    "characters of text": (48600, 1000000),
}
TOKENIZERS = {"bpe", "char"}
