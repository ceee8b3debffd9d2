"""How a run shows that it moves: a bar on a terminal, elsewhere a log line every 30 seconds."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from chatgot.logs.bars import bars_are_disabled, draw_on_any_terminal, tqdm
from chatgot.logs.colours import is_terminal
from chatgot.run.assembly import Run
from chatgot.training.log_lines import postfix, step_line

logger = logging.getLogger(__name__)

LINE_S = 30.0  # seconds without a line of the log


class ProgressBar:
    """The bar of one run; closes with the block that it is used in."""

    def __init__(self, run: Run) -> None:
        self.bar = tqdm(
            total=run.last_step,
            initial=run.state.progress.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=bars_are_disabled() or not is_terminal(sys.stderr) or not run.ranks.is_main,
        )
        draw_on_any_terminal(self.bar)
        self._last_line_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()

    def step_done(self, run: Run, logged: bool) -> None:
        """Show the step just done; `logged`: its line is in the log already."""
        now = time.monotonic()
        if logged:
            self._last_line_s = now
        elif self.bar.disable and now - self._last_line_s >= LINE_S:
            logger.info("%s", step_line(run))
            self._last_line_s = now
        self.bar.set_postfix_str(postfix(run), refresh=False)
        self.bar.update(run.state.progress.global_step - self.bar.n)
