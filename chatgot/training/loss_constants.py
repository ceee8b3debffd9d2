"""What measured runs say about the loss of others."""

# Written by: python scripts/benchmark.py prediction
# 66 runs of 14 texts in docs/measured-runs.csv, the last of 2026-11-29
WEIGHTS = {
    "one": -1.5634,
    "log_parameters": -0.0042032,
    "inverse_power_of_worth": 0.65145,
    "log_text": 0.076539,
    "subwords": 0.042298,
}
BAR = 0.08899  # in logs: 9 of 10 runs of an unknown text are not farther off
# The least and the most of what was measured
MEASURED = {
    "difficulty": (1.2017, 2.7321),
    "parameters": (812416, 14005504),
    "characters seen": (92160, 9216000),
    "characters of text": (54000, 1000000),
}
TOKENIZERS = {"bpe", "char"}
