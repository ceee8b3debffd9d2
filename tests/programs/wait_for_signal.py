"""Wait for signals, in training or before it; print what they ask for.

Usage: python wait_for_signal.py training|preparing [hang|linger|busy]

hang: ignore the request. linger: end a little after it. busy: compute while waiting.
"""

import sys
import time

from chatgot.stopping import StopRequest, reserve_time_to_save


def main() -> None:
    stop = StopRequest()
    stop.install()
    stop.training = sys.argv[1] == "training"
    way = "".join(sys.argv[2:])
    if stop.training:
        reserve_time_to_save()
    try:
        print("ready", flush=True)
        deadline = time.monotonic() + 20
        while not stop.requested() and time.monotonic() < deadline:
            if way != "busy":
                time.sleep(0.005)
        print(stop.exit_code, stop.signal_name, flush=True)
        while way == "hang" and time.monotonic() < deadline:
            time.sleep(0.005)
        if way == "linger":
            time.sleep(0.2)
        sys.exit(stop.exit_code)
    finally:
        print("cleaned up", flush=True)


if __name__ == "__main__":
    main()
