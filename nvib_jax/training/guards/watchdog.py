"""Reports when a run is stuck, say because it waits for a dead process or for a disk."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType


class Watchdog:
    """Within it, a line is printed if `at` has not been called for some time, and again each time
    that this time has doubled.

    Args:
      seconds: how long to wait for the first line; 0 turns it off.
      say: called with the line.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]):
        self._seconds, self._say = seconds, say
        self._last = ("the start", time.monotonic())
        self._done = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, where: str) -> None:
        """Note that the run is moving and where it is, for the line."""
        self._last = (where, time.monotonic())

    def __enter__(self) -> "Watchdog":
        self.at(self._last[0])
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()

    def _watch(self) -> None:
        told, patience = self._last, self._seconds
        while not self._done.wait(min(self._seconds / 4, threading.TIMEOUT_MAX)):
            where, since = last = self._last
            if last != told:
                told, patience = last, self._seconds
            idle = time.monotonic() - since
            if idle >= patience:
                patience *= 2
                self._say(f"nothing has moved for {idle:.0f} s since {where}{self._frame()}")

    def _frame(self) -> str:
        """The line of code at which the watched thread is, in words for the report."""
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return ""
        place = traceback.extract_stack(frame)[-1]
        return f"; it is in {place.name}, {place.filename}:{place.lineno}"
