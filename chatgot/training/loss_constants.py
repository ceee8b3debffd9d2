"""What measured runs say about the loss of others."""

# Written by: python scripts/benchmark.py prediction
# 76 runs of 16 texts in docs/measured-runs.csv, the last of 2026-11-29
WEIGHTS = {
    "one": -1.7959,
    "log_parameters": 0.012249,
    "inverse_power_of_worth": 0.67207,
    "log_text": 0.074822,
    "subwords": 0.036089,
}
BAR = 0.07881  # in logs: 9 of 10 runs of an unknown text are not farther off
# The least and the most of what was measured
MEASURED = {
    "difficulty": (1.2017, 2.7321),
    "parameters": (812416, 14005504),
    "characters seen": (92160, 9216000),
    "characters of text": (54000, 1000000),
}
TOKENIZERS = {"bpe", "char"}
