"""What is written down of a run: log, metrics, events, curves?"""
