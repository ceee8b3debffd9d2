"""Fetch the default text with another Python: fetch_default_text.py PYTHON PATH."""

import signal
import sys
from pathlib import Path

from chatgot.data.corpus import fetch_default_text

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
sys.executable = sys.argv[1]
fetch_default_text(Path(sys.argv[2]))
