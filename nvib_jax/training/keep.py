"""Which checkpoints a run has, and which of them stay."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint import checkpoint_managers as policies

from nvib_jax.training.integrity import Damaged, check_no_links

FOLDER = "checkpoints"
METRIC = "objective"  # the loss on held-out data with the KLs at full weight


def saved_steps(run_dir: str | Path) -> list[int]:
    """Steps of a run's checkpoints, rising; touches nothing."""
    return sorted(int(p.name) for p in (Path(run_dir) / FOLDER).glob("*") if _is_step(p))


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
        ranked = sorted(steps, key=lambda step: self.objectives.get(step, float("inf")))
        kept = {*sorted(steps)[-self.last :], *ranked[: self.best]}
        return [step in kept or bool(self.every and step % self.every == 0) for step in steps]


def _objective(folder: Path) -> float:
    try:
        check_no_links(folder)
        meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
        return float(meta[METRIC])
    except (Damaged, OSError, ValueError, KeyError, TypeError):
        return float("inf")


def _is_step(path: Path) -> bool:
    return path.name.isdigit()
