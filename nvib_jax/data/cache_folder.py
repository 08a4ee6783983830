"""Folders of a cache: claimed by one process, built under a passing name, put in place whole.

Processes that start together would each prepare the same data for themselves. So the first makes
the folder `.claim-DIGEST`, which only one can do on any file system, and the others wait until the
data are there or the claim is given up. The owner writes a line into it every few seconds; a claim
whose line stands still, or whose owner is a dead process of this machine, is taken over. Two owners
at once, as a race at a take-over may leave, cost time alone: both build the same under their own
names, and one of them puts it in place.
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
_ABANDONED_AFTER = 2 * 24 * 3600
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
LOOK_SECONDS = 0.5


class Claim:
    """The right to build one cache.

    Args:
      root: the folder of all caches; it exists.
      digest: which one.
    """

    def __init__(self, root: Path, digest: str) -> None:
        self.folder = root / f"{_CLAIM}{digest}"
        self._listener = Listener()
        self._heartbeat: Heartbeat | None = None

    def take(self) -> bool:
        """Takes the claim if nobody has it, or nobody alive; whether it is this process's now."""
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
        except OSError:  # nobody shall wait for a process that could not even say its name
            _remove(self.folder)
            raise
        self._heartbeat = Heartbeat(self._write, BEAT_SECONDS)
        return True

    def is_held(self) -> bool:
        """Whether somebody alive has it."""
        return self.folder.is_dir() and not self._is_stale()

    def owner(self) -> str:
        """Who has it: "HOST, process N"; empty where nobody has."""
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
    """A folder to build a cache in; it is put in place at the end, and gone after an error."""
    building = root / building_name(digest)
    building.mkdir()
    try:
        yield building
        move_into_place(building, root / digest)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def move_into_place(building: Path, final: Path) -> None:
    """Puts the finished folder in its place, unless another process was first."""
    try:
        building.rename(final)
    except OSError:
        # The other process prepared the same content, by its hash.
        if not (final / METADATA).is_file():
            raise


def building_name(digest: str) -> str:
    """A name of its own for every call, which says whose it is."""
    return f"{_BUILDING}{digest}-{uuid.uuid4().hex}-{socket.gethostname()}-{os.getpid()}"


def discard(folder: Path) -> None:
    """Removes a damaged cache."""
    _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a folder; renamed first, so that nobody sees half of it."""
    doomed = folder.with_name(building_name(folder.name.lstrip(".")))
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def remove_abandoned(root: Path) -> None:
    """Removes what interrupted runs left: of dead processes of this machine, or days old."""
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
