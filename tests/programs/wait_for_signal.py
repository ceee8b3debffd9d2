"""Wait for signals, in training or before it; print what they ask for.

Usage: python wait_for_signal.py training|preparing [hang]; with `hang` it ignores the request.
"""

import sys
import time

from chatgot.stopping import StopRequest


def main() -> None:
    stop = StopRequest()
    stop.install()
    stop.training = sys.argv[1] == "training"
    hang = sys.argv[2:] == ["hang"]
    try:
        print("ready", flush=True)
        deadline = time.monotonic() + 20
        while not stop.requested() and time.monotonic() < deadline:
            time.sleep(0.005)
        print(stop.exit_code, stop.signal_name, flush=True)
        while hang and time.monotonic() < deadline:
            time.sleep(0.005)
        sys.exit(stop.exit_code)
    finally:
        print("cleaned up", flush=True)


if __name__ == "__main__":
    main()
