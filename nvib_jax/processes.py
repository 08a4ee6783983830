"""Several processes of one run: joining them, and sharing what only one of them knows."""

import glob
import importlib.util
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

# Launcher -> the environment variable with its number of processes. For SLURM it is the number of
# `srun`'s step, because in a shell of `salloc` there is one process, however many were allocated.
_LAUNCHERS = {"Open MPI": "OMPI_COMM_WORLD_SIZE", "SLURM": "SLURM_STEP_NUM_TASKS"}


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the other processes of this run, if there are any. Call it before any other use of jax.

    Give all three arguments if no known launcher starts the processes, otherwise none.

    Args:
      coordinator: HOST:PORT of process 0.
      processes: how many processes there are.
      process: which one this is, from 0.

    Raises:
      ValueError: only some of the three are given.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(f"{', '.join(missing)} missing; wanted all of {', '.join(given)}")
    if not missing:
        jax.distributed.initialize(coordinator, processes, process)
    elif launched():
        jax.distributed.initialize()


def launched() -> bool:
    """Whether a launcher has started several processes, or this is the host of a Cloud TPU."""
    if any(int(os.environ.get(name) or 1) > 1 for name in _LAUNCHERS.values()):
        return True
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    return bool(chips) and not cpu and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this is process 0, the only one that logs and writes."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """The value of process 0, on all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def everywhere(value: bool) -> bool:
    """Whether the value is True on every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.int32(value))))


def check_same(name: str, fingerprint: int) -> None:
    """Check that something is the same on all processes.

    Args:
      name: what it is called in the error.
      fingerprint: a hash of this process's, below 2^31.

    Raises:
      ValueError: the fingerprints differ.
    """
    if not everywhere(from_first(fingerprint) == fingerprint):
        raise ValueError(f"{name} of process {jax.process_index()} and of process 0 differ")


def text_from_first(text: str) -> str:
    """The text of process 0, on all processes; at most its first 4,096 bytes."""
    if jax.process_count() == 1:
        return text
    row = np.zeros(4096, np.uint8)
    content = np.frombuffer(text.encode("utf-8")[: row.size], np.uint8)
    row[: content.size] = content
    found = np.asarray(multihost_utils.broadcast_one_to_all(row), np.uint8)
    return found.tobytes().rstrip(b"\0").decode("utf-8", errors="replace")
