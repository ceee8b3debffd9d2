"""A process that helps another one to encode a text as subwords; see `subword_children.py`.

It reads pickles from stdin: first what the vocabulary is, then pieces of the text, batch by batch.
It writes the bytes of each batch's ids to stdout. It ends when its stdin ends, as it does when the
other process has died: a signal to all processes of a terminal or a job is for that one.
"""

import pickle
import signal
import sys

from chatgot.stopping import NAMES, NOTICES


def main() -> None:
    """Encode what comes, until nothing more comes."""
    for name in (*NAMES, *NOTICES):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    import numpy as np

    from chatgot.data.subwords import Subwords

    requests = sys.stdin.buffer
    json, end_of_text, dtype = pickle.load(requests)
    vocabulary = Subwords.from_json(json, end_of_text)
    while True:
        try:
            pieces = pickle.load(requests)
        except EOFError:
            return
        ids = np.array(vocabulary.encode_pieces(pieces), dtype)
        pickle.dump(ids.tobytes(), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
