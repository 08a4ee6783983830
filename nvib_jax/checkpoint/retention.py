"""Which checkpoints a run has, what they say of themselves, and which of them stay."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint import checkpoint_managers as policies

from nvib_jax.checkpoint.description import FORMAT
from nvib_jax.checkpoint.integrity import Damaged, check_no_links, check_seal

FOLDER = "checkpoints"
METRIC = "objective"  # the loss on held-out data with the KLs at full weight


def saved_steps(run_dir: str | Path) -> list[int]:
    """Steps of a run's checkpoints, rising; touches nothing."""
    return sorted(int(p.name) for p in (Path(run_dir) / FOLDER).glob("*") if _is_step(p))


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta data of a checkpoint.

    Args:
      folder: of the checkpoint, whose name is its step.

    Raises:
      Damaged: links in it, no seal, or a step that is not the folder's name.
      OSError, RecursionError, ValueError: what is no file or no JSON.
    """
    check_no_links(folder)
    meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    if not isinstance(meta, dict):
        raise Damaged("its meta data are no JSON object")
    if meta.get("format") == FORMAT:  # another version's is refused for that, not for its seal
        check_seal(meta)
        if meta.get("step") != int(folder.name):
            raise Damaged(f"it says that it is of step {meta.get('step')}")
    return meta


def objective_of(meta: dict[str, Any] | None) -> float:
    """How good a checkpoint is, the lower the better; infinity where that was not measured."""
    value = (meta or {}).get(METRIC)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.inf


class Keep(policies.PreservationPolicy):
    """Which checkpoints stay: the last, the best, and every so many steps.

    The objectives are those in the meta data, so that no other file can be damaged; best is lowest.

    Args:
      folder: of the checkpoints.
      last: how many of the last.
      best: how many of the best.
      every: those at multiples of so many steps; 0 is none.
    """

    def __init__(self, folder: Path, last: int, best: int, every: int):
        self.last, self.best, self.every = last, best, every
        self.objectives = {int(p.name): _objective(p) for p in folder.glob("*") if _is_step(p)}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer for each checkpoint, in order."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted(steps, key=lambda step: self.objectives.get(step, math.inf))
        kept = {*sorted(steps)[-self.last :], *ranked[: self.best]}
        return [step in kept or bool(self.every and step % self.every == 0) for step in steps]


def _objective(folder: Path) -> float:
    try:
        return objective_of(read_meta(folder))
    except (Damaged, OSError, ValueError, RecursionError):  # it is named where it is read
        return math.inf


def _is_step(path: Path) -> bool:
    """Whether a folder's name is a step as it is written, "12" and not "012" or "²"."""
    name = path.name
    return name.isascii() and name.isdigit() and str(int(name[:18])) == name and path.is_dir()
