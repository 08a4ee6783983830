"""Lists a run's checkpoints, reads their meta data, and decides which of them are kept."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint import checkpoint_managers as policies

from nvib_jax.checkpoint.description import FORMAT
from nvib_jax.checkpoint.integrity import Damaged, check_no_links, check_seal

FOLDER = "checkpoints"
METRIC = "objective"  # in the meta data: the loss on held-out data with the KLs at full weight


def saved_steps(run_dir: str | Path) -> list[int]:
    """Steps of a run's checkpoints, rising; it only lists the folder."""
    return sorted(int(p.name) for p in (Path(run_dir) / FOLDER).glob("*") if _is_step(p))


def read_meta(folder: Path) -> dict[str, Any]:
    """The meta data of a checkpoint.

    Args:
      folder: the checkpoint's, whose name is its step.

    Raises:
      Damaged: it contains links, does not match its seal, or says another step than its name.
      OSError, RecursionError, ValueError: the file is missing or is not JSON.
    """
    check_no_links(folder)
    meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
    if not isinstance(meta, dict):
        raise Damaged("its meta data are no JSON object")
    # Only a checkpoint of this version's format is sealed as `check_seal` expects. Whoever reads
    # one of another format refuses it by its format.
    if meta.get("format") == FORMAT:
        check_seal(meta)
        if meta.get("step") != int(folder.name):
            raise Damaged(f"it says that it is of step {meta.get('step')}")
    return meta


def objective_of(meta: dict[str, Any] | None) -> float:
    """A checkpoint's objective, the lower the better; infinity if it was not measured."""
    value = (meta or {}).get(METRIC)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.inf


class Keep(policies.PreservationPolicy):
    """Which checkpoints are not deleted: the last ones, the best ones, and every so many steps.

    The objectives are read from the meta data and from no other file, because another file could be
    damaged as well. The best is the lowest.

    Args:
      folder: the folder of the checkpoints.
      last: how many of the last ones.
      best: how many of the best ones.
      every: those at multiples of this number of steps; 0 is none.
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
    except (Damaged, OSError, ValueError, RecursionError):  # whoever reads it reports the damage
        return math.inf


def _is_step(path: Path) -> bool:
    """Whether a folder's name is a step exactly as it is written: "12", not "012" or "²"."""
    name = path.name
    return name.isascii() and name.isdigit() and str(int(name[:18])) == name and path.is_dir()
