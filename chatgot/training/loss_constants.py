"""What measured runs say about the loss of others."""

# Written by: python scripts/benchmark.py prediction
# 78 runs of 16 texts in docs/measured-runs.csv, the last of 2026-11-29
WEIGHTS = {
    "one": -1.7368,
    "log_parameters": 0.0079904,
    "inverse_power_of_worth": 0.67044,
    "log_text": 0.074953,
    "subwords": 0.032706,
}
BAR = 0.07881  # in logs: 9 of 10 runs of an unknown text are not farther off
# The least and the most of what was measured
MEASURED = {
    "difficulty": (1.2017, 2.7321),
    "parameters": (812416, 14005504),
    "characters seen": (92160, 36903321.6),
    "characters of text": (54000, 1000000),
}
TOKENIZERS = {"bpe", "char"}
