"""Reports too little memory: before the run if it is certain to fail, otherwise when it fails.

A batch that does not fit is the most common error. Only the compiled step knows exactly how much
memory it needs (`nvib train --dry-run`), but a lower bound follows from the config.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from nvib_jax.config import Config
from nvib_jax.mesh import ways

GIB = 2**30
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(
    config: Config, mesh: jax.sharding.Mesh, params: Mapping[str, Any], length: int
) -> None:
    """Check that each device has at least the memory that a step cannot do without.

    That is the parameters, their gradients and two moments, and what the backward pass reads of
    each token. No compiler can avoid these.

    Args:
      config: its batch and layers are counted.
      mesh: the devices.
      params: name -> anything with a shape and a dtype.
      length: tokens of the longest bucket.

    Raises:
      ValueError: there is less; the error says how much is needed and which options reduce it.
    """
    rows = config.data.batch_size // (ways(mesh, "batch") * config.train.accumulate)
    states = rows * length * config.model.bytes_per_token()
    arrays = sum(math.prod(p.shape) * jnp.dtype(p.dtype).itemsize for p in params.values())
    needed = 4 * arrays // (mesh.shape["fsdp"] * mesh.shape["tensor"]) + states
    there = available(mesh)
    if there is not None and needed > there:
        raise ValueError(
            f"a step needs at least {needed / GIB:,.1f} GiB on each device, which has "
            f"{there / GIB:,.1f}: {asked(config, params, length)}; {_CURES}"
        )


def available(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes of memory that a device of the mesh has; None if that is unknown."""
    device = mesh.local_devices[0]
    stats = device.memory_stats()
    if stats and stats.get("bytes_limit"):
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return None
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max", which is no number
            found.append(int(Path(file).read_text(encoding="ascii")))
    return min(found) // len(mesh.local_devices)  # CPU devices share the machine's memory


def asked(config: Config, params: Mapping[str, Any], length: int) -> str:
    """A description of a step's size, for a person who has to reduce it."""
    numbers = sum(math.prod(p.shape) for p in params.values())
    return (
        f"{config.data.batch_size:,} sentences of up to {length} tokens in "
        f"{config.train.accumulate:,} parts, {numbers:,} parameters"
    )


_CURES = (
    "turn down --data.batch-size, turn up --train.accumulate, or --model.remat; --dry-run says "
    "what a step needs"
)


@contextlib.contextmanager
def memory_explained(config: Config, params: Mapping[str, Any], length: int) -> Iterator[None]:
    """Within it, running out of memory becomes an error of one sentence.

    Raises:
      MemoryError: memory ran out; the error says for what and which options reduce it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = " ".join(str(error).split())
        full = ("RESOURCE_EXHAUSTED", "bad_alloc", "Out of memory", "out of memory")
        if not isinstance(error, MemoryError) and not any(word in text for word in full):
            raise
        raise MemoryError(
            f"there is too little memory for {asked(config, params, length)}: {_CURES} "
            f"({text[:200]})"
        ) from error
