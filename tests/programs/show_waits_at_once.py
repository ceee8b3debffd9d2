"""Run the training script with bars for the shortest waits: show_waits_at_once.py ARGUMENTS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where harness is
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import harness

from chatgot.logs import waiting

waiting.DELAY_S = 0.0
waiting.LINE_S = 0.0
waiting.TICK_S = 0.01
sys.exit(harness.load_script().main(sys.argv[1:]))
