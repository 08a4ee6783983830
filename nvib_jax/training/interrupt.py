"""Ctrl-C as a request: finish the step, keep a checkpoint, then stop."""

import signal
import threading
from types import TracebackType
from typing import Any


class Interrupt:
    """Within it, the first Ctrl-C sets `asked`; a second one stops at once, as ever.

    The step in progress owns the donated state: an exception out of it would leave nothing to save.
    Outside the main thread, where signals cannot be caught, and where Ctrl-C is ignored, as under
    nohup, it is left as it is.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "Interrupt":
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
