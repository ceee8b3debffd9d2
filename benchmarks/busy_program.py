"""Keep one core busy for some seconds, as another program does: busy_program.py SECONDS."""

import sys
import time

end_s = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end_s:
    pass
