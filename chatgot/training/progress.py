"""How a run shows that it moves: a bar on a terminal, elsewhere a line of the log at least every 30 seconds."""

import logging
import sys
import time

from tqdm import tqdm

from chatgot.run.assembly import Training
from chatgot.training.log_lines import postfix, step_line

logger = logging.getLogger(__name__)

LINE_S = 30.0  # seconds without a line of the log


class Progress:
    """The bar of one run; closes with the block that it is used in."""

    def __init__(self, training: Training) -> None:
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(
            total=training.last_step, initial=training.run.global_step, unit="step", disable=not on_terminal,
            dynamic_ncols=True,
        )  # fmt: skip
        self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def step_done(self, training: Training, logged: bool) -> None:
        """Show the step just done; `logged`: its line is in the log already."""
        now = time.monotonic()
        if logged:
            self._last_line = now
        elif self.bar.disable and now - self._last_line >= LINE_S:
            logger.info("%s", step_line(training))
            self._last_line = now
        self.bar.set_postfix_str(postfix(training), refresh=False)
        self.bar.update(training.run.global_step - self.bar.n)
