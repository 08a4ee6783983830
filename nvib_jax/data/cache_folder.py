"""Makes one process build a cache while others wait, and puts the finished folder in place.

Processes that start together would otherwise each prepare the same data. So the first makes the
folder `.claim-DIGEST`, which only one can do on any file system, and the others wait until the data
are there or the claim is given up. The owner updates a line in it every few seconds. A claim is
taken over if its line has not changed for a while, or if its owner was a process of this machine
that has ended. A race at a take-over may leave two owners. That only costs time: both build the
same data under names of their own, and one of them puts it in place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from nvib_jax.data.prepared import METADATA
from nvib_jax.heartbeat import Heartbeat, Listener, is_alive

_BUILDING = ".building-"
_CLAIM = ".claim-"
_OWNER = "owner"
_ABANDONED_AFTER = 2 * 24 * 3600  # seconds after which an unfinished folder is removed
BEAT_SECONDS = 5.0  # how often the owner updates its line
STALE_SECONDS = 60.0  # after this long without an update a claim is taken over
LOOK_SECONDS = 0.5  # how often a waiting process looks


class Claim:
    """The right to build one cache.

    Args:
      root: the folder of all caches; it exists.
      digest: the name of the cache.
    """

    def __init__(self, root: Path, digest: str) -> None:
        self.folder = root / f"{_CLAIM}{digest}"
        self._listener = Listener()
        self._heartbeat: Heartbeat | None = None

    def take(self) -> bool:
        """Take the claim if no living process has it; return whether this process has it now."""
        try:
            self.folder.mkdir()
        except FileExistsError:
            if not self._is_stale():
                return False
            _remove(self.folder)
            self._listener = Listener()
            return self.take()
        try:
            self._write()
        except OSError:  # without a line the claim has no owner, so others would wait in vain
            _remove(self.folder)
            raise
        self._heartbeat = Heartbeat(self._write, BEAT_SECONDS)
        return True

    def is_held(self) -> bool:
        """Whether a living process has the claim."""
        return self.folder.is_dir() and not self._is_stale()

    def owner(self) -> str:
        """The owner as "HOST, process N"; empty if there is none."""
        return self._read().rpartition(" ")[0]

    def give_up(self) -> None:
        """Lets the next one have it."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        _remove(self.folder)

    def _read(self) -> str:
        try:
            return (self.folder / _OWNER).read_text(encoding="utf-8")
        except OSError:
            return ""

    def _write(self) -> None:
        line = f"{socket.gethostname()}, process {os.getpid()} {time.time():.0f}"
        draft = self.folder / f"{_OWNER}.{os.getpid()}"
        draft.write_text(line, encoding="utf-8")
        draft.replace(self.folder / _OWNER)

    def _is_stale(self) -> bool:
        line = self._read()
        host, _, rest = line.partition(", process ")
        process = rest.partition(" ")[0]
        if host == socket.gethostname() and process.isdigit() and not is_alive(int(process)):
            return True
        return self._listener.silence(line) > STALE_SECONDS


@contextlib.contextmanager
def building_folder(root: Path, digest: str) -> Iterator[Path]:
    """A folder to build a cache in. It is moved into place at the end; after an error, removed."""
    building = root / building_name(digest)
    building.mkdir()
    try:
        yield building
        move_into_place(building, root / digest)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def move_into_place(building: Path, final: Path) -> None:
    """Move the finished folder into its place, unless another process was first."""
    try:
        building.rename(final)
    except OSError:
        # If the place is taken by a finished cache, it has the same content, because its name is
        # the hash of that.
        if not (final / METADATA).is_file():
            raise


def building_name(digest: str) -> str:
    """A new unique name, which contains the host and the process that it belongs to."""
    return f"{_BUILDING}{digest}-{uuid.uuid4().hex}-{socket.gethostname()}-{os.getpid()}"


def discard(folder: Path) -> None:
    """Remove a damaged cache."""
    _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that nobody sees it half removed."""
    doomed = folder.with_name(building_name(folder.name.lstrip(".")))
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def remove_abandoned(root: Path) -> None:
    """Remove unfinished folders of processes on this machine that have ended, and old ones."""
    for folder in root.glob(f"{_BUILDING}*"):
        name, _, process = folder.name.rpartition("-")
        here = name.endswith(f"-{socket.gethostname()}")
        dead = here and process.isdigit() and not is_alive(int(process))
        try:
            old = time.time() - folder.stat().st_mtime > _ABANDONED_AFTER
        except FileNotFoundError:
            continue
        if dead or old:
            shutil.rmtree(folder, ignore_errors=True)
