"""Signs of life: an owner writes a line again and again, the others see whether it moves.

A lock of the operating system says who is alive, but on many a shared file system (gcsfuse, NFS
with local locks) to processes of one machine alone. A line that moves says so to all. Standard
library only.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable


class Heartbeat:
    """Calls a function every so often, in a thread of its own, until it is stopped.

    Args:
      write: writes the owner's line anew; its OSErrors are passed over, because a disk that is full
        for a while ends nobody's claim.
      seconds: between two calls; the first comes after as long.
    """

    def __init__(self, write: Callable[[], None], seconds: float) -> None:
        self._write, self._seconds = write, seconds
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def stop(self) -> None:
        """No call begins from now on; one that is under way may end later."""
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds):
            with contextlib.suppress(OSError):
                self._write()


class Listener:
    """How long an owner's line has stood still, by the listener's own clock."""

    def __init__(self) -> None:
        self._seen: tuple[str, float] | None = None  # the line, and since when

    def silence(self, line: str) -> float:
        """Seconds since the line was first seen as it is; 0 where it has moved."""
        now = time.monotonic()
        if self._seen is None or self._seen[0] != line:
            self._seen = (line, now)
        return now - self._seen[1]


def is_alive(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
