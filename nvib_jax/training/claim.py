"""A run folder belongs to one run at a time: the first claims it, a second one gets an error.

The claim is a lock of the operating system on `RUN/.claim`, a file that also says whose it is. The
lock ends with its process, whatever ended that, so that a killed run stands in nobody's way. Such
locks may be unknown to other machines, or not be there at all: then the file itself is the claim.
That of a dead process of this machine counts for nothing, and that of another machine's process
ends when the file has not moved for `STALE_SECONDS`: whoever holds a claim writes the time into it.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from nvib_jax.heartbeat import Heartbeat, Listener, is_alive
from nvib_jax.processes import everywhere, is_first, text_from_first
from nvib_jax.progress import to_standard_error

CLAIM = ".claim"
BEAT_SECONDS = 20.0
STALE_SECONDS = 180.0  # a mounted bucket may show a file as it was a minute ago
LOOK_SECONDS = 2.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Claimed(FileExistsError):
    """Another run is using the folder."""


class Claim:
    """Claims a folder for one run, until the end of a `with` block or of the process.

    If a run has several processes, process 0 claims, and all succeed or fail together.

    Args:
      folders: the first one that no other run is using is claimed. It is made if it is missing, and
        removed at the end if it is still empty.
      say: called with a line of text about a claim that a dead process left.

    Attributes:
      folder: the one that was taken.

    Raises:
      Claimed: other runs use all of them; the error names the process, host and time of the last.
      OSError: a folder cannot be written to.
    """

    def __init__(
        self, folders: Iterable[str | Path], *, say: Callable[[str], None] = to_standard_error
    ):
        self.folder = Path()
        self._file: int | None = None
        self._made: list[Path] = []
        self._me = _me()
        self._turn = threading.Lock()  # of the file: it is closed by one thread, written by two
        self._heartbeat: Heartbeat | None = None
        error: OSError | None = None
        if is_first():
            for folder in folders:
                self.folder = Path(folder)
                try:
                    self._take(say)
                    error = None
                    break
                except Claimed as refusal:
                    error = refusal
                except OSError as reason:
                    error = OSError(f"{folder} cannot be claimed: {reason.strerror or reason}")
                    error.__cause__ = reason
                    break
        if not everywhere(error is None):
            self.release()
            raise error or Claimed("process 0 has no folder for this run; it says why")
        self.folder = Path(text_from_first(str(self.folder)))

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let others have the folder; once is enough, twice does no harm."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        with self._turn:
            if self._file is not None:
                with contextlib.suppress(OSError):  # of a disk that is gone, say
                    (self.folder / CLAIM).unlink()  # while it is locked: then it may be another's
                os.close(self._file)
                self._file = None
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # the folder is not empty
                folder.rmdir()
        self._made = []

    def _take(self, say: Callable[[str], None]) -> None:
        """Claim `self.folder`, or raise `Claimed` if another run is using it."""
        path = self.folder / CLAIM
        while self._file is None:
            for folder in reversed([self.folder, *self.folder.parents]):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    self._made.append(folder)
            with contextlib.suppress(FileNotFoundError):  # whoever made the folder removed it again
                self._file = _claimed_file(path, say)
        left_by = _holder(self._file)
        os.ftruncate(self._file, 0)
        self._write()
        self._heartbeat = Heartbeat(self._write, BEAT_SECONDS)
        if left_by:
            ended = "has ended" if _is_here(left_by) else "has given no sign of life for minutes"
            say(f"{self.folder} was left claimed by {_named(left_by)}, which {ended}")

    def _write(self) -> None:
        """Who has the folder, and that it lives; always as long, so that none reads two halves."""
        line = json.dumps({**self._me, "beat": int(time.time())}).encode()
        with self._turn:
            if self._file is not None:
                os.pwrite(self._file, line, 0)
                os.fsync(self._file)  # a mounted bucket uploads it now, and else when it is closed


def _claimed_file(path: Path, say: Callable[[str], None]) -> int | None:
    """The claim's file, open and this process's own; None where its last owner just removed it."""
    flags, fresh = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, True
    try:
        file = os.open(path, flags | os.O_EXCL, 0o666)
    except FileExistsError:
        file, fresh = os.open(path, flags, 0o666), False
    try:
        _check_nobodys(file, path, fresh, say)
        if os.path.samestat(os.fstat(file), os.stat(path)):
            file, mine = -1, file
            return mine
        return None
    finally:
        if file >= 0:
            os.close(file)


def _check_nobodys(file: int, path: Path, fresh: bool, say: Callable[[str], None]) -> None:
    """Lock the file.

    Raises:
      Claimed: another process has locked it. If the file system has no locks: the file existed
        before, and its process is not known to be dead.
    """
    hint = "wait for it, or name another run with --train.run-dir"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder = _holder(file)
        if fresh or not holder or _is_here(holder) or _is_silent(path, holder, say):
            return
        hint += f"; if that process has ended, remove {path}"
    except BlockingIOError:
        holder = _holder(file, patience=1.0)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        holder = _holder(file)
        if fresh or (holder and (_is_dead(holder) or _is_silent(path, holder, say))):
            return
        hint += f"; if that process has ended, remove {path}"
    raise Claimed(f"{path.parent} is in use by {_named(holder)}; {hint}")


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether it is a process of this machine, or does not say of which."""
    return holder.get("host", socket.gethostname()) == socket.gethostname()


def _is_silent(path: Path, holder: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Whether another machine's process has written nothing for `STALE_SECONDS`.

    A recent line is watched until it moves, which is soon where its owner lives. A claim without
    beats (of 0.1.0) is never silent, because its owner would not write whether it lived or not.
    """
    if _is_here(holder) or type(holder.get("beat")) is not int:
        return False
    listener, found = Listener(), holder
    if time.time() - found["beat"] <= STALE_SECONDS:
        say(f"looking whether {_named(holder)}, which has {path.parent}, gives a sign of life")
    while (age := time.time() - found["beat"]) <= STALE_SECONDS:
        if listener.silence(str(found["beat"])) > STALE_SECONDS:
            return True  # a line from the future: its clock is ahead of this one
        time.sleep(LOOK_SECONDS)
        try:
            found = json.loads(path.read_bytes())  # opened anew: shared folders promise no more
        except FileNotFoundError:
            return True  # it has ended, just now
        except ValueError:  # half a line
            continue
        if not isinstance(found, dict) or found.get("beat") != holder["beat"]:
            return False
    return age > STALE_SECONDS


def _me() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _holder(file: int, patience: float = 0.0) -> dict[str, Any]:
    """What the claim's file says about its holder; empty if it says nothing within `patience` s."""
    # The wait is needed, because a holder locks the file first and writes to it just afterwards.
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(os.pread(file, 4096, 0))
            return found if isinstance(found, dict) else {}
        if time.monotonic() >= end:
            return {}
        time.sleep(0.02)


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return "process {process} on {host} since {since}".format_map(
        {"process": "?", "host": "?", "since": "?", **holder}
    )


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process on this machine that has ended."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or type(process) is not int:
        return False
    return not is_alive(process)
