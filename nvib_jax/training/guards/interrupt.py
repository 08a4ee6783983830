"""Ctrl-C and SIGTERM as a request: finish the step, keep a checkpoint, then stop."""

import os
import signal
import threading
from types import TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Within it, the first Ctrl-C or SIGTERM is only noted; a second Ctrl-C stops at once as usual.

    A signal must not raise in the middle of a step, because the step has donated the state and
    nothing would be left to save. Signals keep their handlers outside the main thread, which cannot
    catch them, and where they are ignored (as Ctrl-C is under nohup).

    If the run has several processes, perhaps only one receives the signal. JAX's coordination
    service, which catches SIGTERM itself, then finds a step at which all of them stop. Ctrl-C is
    passed on to it as SIGTERM.
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
        """Whether to stop now. All processes get the same answer and must ask equally often."""
        self._questions += 1  # the service counts calls from 1, also in a resumed run
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
