"""Ctrl-C and SIGTERM as a request: finish the step, keep a checkpoint, then stop."""

import os
import signal
import threading
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Within it, the first Ctrl-C or SIGTERM is kept; a second Ctrl-C stops at once, as ever.

    The step in progress owns the donated state: an exception out of it would leave nothing to save.
    Outside the main thread, where signals cannot be caught, and where a signal is ignored, as
    Ctrl-C is under nohup, it is left as it is.

    Of several processes one may be told alone. Then JAX's coordination service, which catches
    SIGTERM itself, finds a step that all of them reach; Ctrl-C is passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._questions = 0
        self._before: dict[int, Any] = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def asked_to_stop(self) -> bool:
        """Whether to stop now; the same on every process, which all must ask as often."""
        self._questions += 1  # the service counts from 1, wherever the run is
        if not self._alone and multihost_utils.reached_preemption_sync_point(self._questions):
            self.asked = signal.SIGTERM
        return self.asked is not None

    def leave(self) -> None:
        """Stop as the signal would have.

        Raises:
          KeyboardInterrupt: after Ctrl-C.
          SystemExit: after SIGTERM, with the status that a shell expects, 143.
        """
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _ask(self, number: int, frame: Any) -> None:
        self._restore()
        if self._alone:
            self.asked = number
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
