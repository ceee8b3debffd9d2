"""Begin to write a folder, and be killed.

Usage: python die_in_a_new_folder.py PATH
"""

import os
import sys
from pathlib import Path

from chatgot.exchange.new_folder import new_folder


def main() -> None:
    with new_folder(Path(sys.argv[1])) as temporary:
        (temporary / "a").write_text("1")
        # as kill -9 does: no handler, no finally
        os._exit(9)


if __name__ == "__main__":
    main()
