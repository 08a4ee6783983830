"""Folders of a cache: built under a passing name, put in place whole, cleared away if abandoned."""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from pathlib import Path

from nvib_jax.data.prepared import METADATA

_BUILDING = ".building-"
_ABANDONED_AFTER = 2 * 24 * 3600


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
    """Removes a damaged cache; renamed first, so that nobody sees half of it."""
    doomed = folder.with_name(building_name(folder.name))
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
        dead = here and process.isdigit() and not _is_alive(int(process))
        try:
            old = time.time() - folder.stat().st_mtime > _ABANDONED_AFTER
        except FileNotFoundError:
            continue
        if dead or old:
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
