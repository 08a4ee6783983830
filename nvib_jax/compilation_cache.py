"""Keeps compiled code on disk, so that a second command with the same shapes starts at once.

Code that XLA compiles for a command is kept in `$NVIB_CACHE/compiled` (or
`~/.cache/nvib_jax/compiled`). Loading an entry runs machine code, so the folder must belong to the
user alone. Each kind of machine has a folder of its own, because JAX's own key lacks the
processor's instruction set, and different machines may share a home directory.
"""

import contextlib
import hashlib
import os
import platform
import stat
from pathlib import Path

SWITCH = "NVIB_COMPILATION_CACHE"  # "off" turns it off
_LEAST_SECONDS = 0.2  # code that compiles faster than this is not kept
_MOST_BYTES = 2 << 30  # of all entries for one kind of machine; the oldest are removed first


def quick_to_compile() -> dict[str, int] | None:
    """Options for `jax.jit` of a function that runs a few times, or None for the usual ones.

    On a CPU LLVM's level 1 takes .62 of the time for `bound_terms` and .86 for `rewrite`, and the
    code runs as fast (quickstart's model, 2 shared cores). `XLA_FLAGS` goes before it.
    """
    import jax

    level = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


def use_compilation_cache() -> Path | None:
    """Let JAX keep compiled code for the next process of this user.

    `NVIB_COMPILATION_CACHE=off` turns it off. If JAX already has a cache folder
    (`JAX_COMPILATION_CACHE_DIR`), nothing is changed.

    Returns:
      The folder, or None if this function sets none.

    Raises:
      ValueError: `NVIB_COMPILATION_CACHE` is neither "on" nor "off", or the folder is a link or
        another user's.
    """
    import jax

    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not _switched_on() or told:
        return None
    root = _root()
    folder = root / _machine()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_private(root)
        folder.mkdir(exist_ok=True)
        _remove_oldest(folder)
    except OSError:  # on a read-only or full disk everything still works without a cache
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def where() -> str:
    """The folder's path for a person to read, or the reason why there is none."""
    told = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return told or (str(_root()) if _switched_on() else f"not kept ({SWITCH}=off)")


def _switched_on() -> bool:
    switch = os.environ.get(SWITCH, "on")
    if switch not in ("on", "off"):
        raise ValueError(f"{SWITCH} is {switch!r}; wanted 'on' or 'off'")
    return switch == "on"


def _root() -> Path:
    return Path(os.environ.get("NVIB_CACHE") or "~/.cache/nvib_jax").expanduser() / "compiled"


def _machine() -> str:
    """A name that machines share if they have the same instruction set."""
    seen = [platform.system(), platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        seen += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    except OSError:
        seen.append(platform.processor())
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _make_private(folder: Path) -> None:
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError(
            f"{folder} holds code that will be run, and is a link or another user's; wanted a "
            f"folder of yours alone, or {SWITCH}=off"
        )
    folder.chmod(0o700)


def _remove_oldest(folder: Path) -> None:
    """Remove the oldest entries above `_MOST_BYTES`; other processes may do so at the same time."""
    entries = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            entries.append((file.stat().st_mtime, file.stat().st_size, file))
    surplus = sum(size for _, size, _ in entries) - _MOST_BYTES
    for _, size, file in sorted(entries):
        if surplus <= 0:
            return
        file.unlink(missing_ok=True)
        surplus -= size
