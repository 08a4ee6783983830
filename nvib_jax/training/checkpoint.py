"""Checkpoints of a run: parameters, optimiser state, and all that is needed to go on without it.

One Orbax step folder holds three items: `params` (a flat dict), `optimizer` (step, state, running
mean of the loss) and `meta` (JSON: config, tokenizer, buckets, counts, versions, fingerprints). The
data's position is the step: a batch is a function of (seed, step). Orbax writes to a temporary name
and renames, so a folder that counts as a step was whole once; what has changed since is found by
the fingerprints (`integrity.py`), and the one before it is read. Reading runs no code of a file.
"""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from nvib_jax.text_model import TextModel
from nvib_jax.training.compatible import check_same_run
from nvib_jax.training.distributed import everywhere, is_first
from nvib_jax.training.integrity import (
    Damaged,
    check_fingerprints,
    check_no_links,
    check_seal,
    fingerprints,
    seal,
)
from nvib_jax.training.keep import FOLDER, METRIC, Keep, saved_steps
from nvib_jax.training.logging import to_standard_error
from nvib_jax.training.portable import FORMAT, describe
from nvib_jax.training.state import TrainState

DAMAGED = "damaged"  # where damaged ones are moved by a run that goes on
T = TypeVar("T")


class _Manager(ocp.CheckpointManager):
    """Orbax's, but for a notice of preemption, which `Interrupt` alone may ask for."""

    def reached_preemption(self, step: int) -> bool:
        """Never: every question moves JAX's own counter of steps."""
        return False


class Checkpoints:
    """The checkpoints of one run directory, which all processes of the run see.

    Args:
      run_dir: the run.
      keep: how many of the last to keep.
      best: how many with the lowest objective to keep beside them.
      every: keep those at multiples of so many steps for good; 0 keeps none of them.
      read_only: leave the folder as it is, whoever writes to it.
      say: told of a damaged checkpoint.

    Raises:
      OSError: a folder that cannot be written to.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        keep: int = 2,
        best: int = 1,
        every: int = 0,
        read_only: bool = False,
        say: Callable[[str], None] = to_standard_error,
    ):
        self.folder = (Path(run_dir) / FOLDER).absolute()
        self._read_only, self._say = read_only, say
        self._keep = Keep(self.folder, max(keep, 1), best, every)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            read_only=read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,
        )
        with _without_warnings(), self._writing():  # that the folder is read-only, as was asked
            self._manager = _Manager(
                self.folder,
                options=options,
                item_handlers={
                    "params": ocp.StandardCheckpointHandler(),
                    "optimizer": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )

    def steps(self) -> list[int]:
        """Steps that are there, rising."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, model: TextModel, objective: float | None) -> None:
        """Save in the background; waits for the save before it, if any.

        Args:
          state: what is saved.
          model: of this state.
          objective: the lower, the better; None where there was no time to measure it.

        Raises:
          OSError: this one, or the one before it, cannot be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = {"params": state.params, "optimizer": _optimizer(state)}
        found = {name: fingerprints(tree) for name, tree in items.items()}
        meta = {**describe(model), METRIC: objective, "step": step, "fingerprints": found}
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._keep.objectives[step] = float("inf") if objective is None else objective
        with self._writing(step):
            if not self._manager.save(
                step,
                args=ocp.args.Composite(**trees, meta=ocp.args.JsonSave(seal(meta))),
            ):
                raise OSError(f"there is one of a later step, {max(self.steps(), default=None)}")

    def wait(self) -> None:
        """Until the last save is whole.

        Raises:
          OSError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def restore(self, state: TrainState, model: TextModel) -> TrainState:
        """The last state that is whole; damaged ones after it are moved out of the way.

        Args:
          state: of arrays, or of shapes with shardings: what comes back is like it.
          model: what is to be continued.

        Raises:
          FileNotFoundError: nothing to resume from.
          ValueError: the checkpoint is of another config than `model`, the fields that differ are
            named, or of other data; or none is whole, and then none is moved.
        """
        shapes = jax.tree.map(_abstract, state)
        wanted = {"params": shapes.params, "optimizer": _optimizer(shapes)}
        for step, meta in self.metas():
            check_same_run(model, meta, self.folder)
            items = self.read(step, meta, wanted)
            if items is not None:
                if not self._read_only:
                    self._set_aside([other for other in self.steps() if other > step])
                return TrainState(params=items["params"], **items["optimizer"])
        raise ValueError(f"no checkpoint in {self.folder} is whole")

    def metas(self, which: str = "last") -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, meta data) of the checkpoints whose meta data are whole, the wanted one first.

        Args:
          which: "last", or "best" for the lowest objective.

        Raises:
          FileNotFoundError: there is no checkpoint.
        """
        if not self._read_only:
            self.wait()
        steps = self.steps()[::-1]
        if not steps:
            raise FileNotFoundError(
                f"{self.folder} has no finished checkpoint; the first is of step train.eval_every"
            )
        found = ((step, self._whole(step, partial(self._meta, step))) for step in steps)
        whole = ((step, meta) for step, meta in found if meta is not None)
        if which == "last":
            return whole
        return iter(sorted(whole, key=lambda pair: self._keep.objectives.get(pair[0], math.inf)))

    def read(
        self, step: int, meta: dict[str, Any], shapes: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Items of a checkpoint as arrays; None, and a line that says so, where it is damaged.

        Args:
          step: one of `metas`.
          meta: its meta data.
          shapes: item -> tree of shapes with shardings.
        """
        items = self._whole(step, partial(self._read_items, step, shapes))
        if items is None:
            return None

        def check() -> dict[str, Any]:
            # All of them first: every process takes part in each, whatever it finds in one.
            found = {name: fingerprints(tree) for name, tree in items.items()}
            for name in found:
                check_fingerprints(found[name], meta["fingerprints"][name])
            return items

        return self._whole(step, check)

    def _read_items(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        """Not by the manager, which waits for all processes: one that fails would not come."""
        folder = epath.Path(self.folder) / str(step)
        return {
            name: ocp.StandardCheckpointHandler().restore(
                folder / name, args=ocp.args.StandardRestore(tree)
            )
            for name, tree in shapes.items()
        }

    def _meta(self, step: int) -> dict[str, Any]:
        folder = self.folder / str(step)
        check_no_links(folder)
        meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
        if not isinstance(meta, dict):
            raise Damaged("its meta data are no JSON object")
        if meta.get("format") == FORMAT:  # another version's is refused for that, not for its seal
            check_seal(meta)
        return meta

    def _whole(self, step: int, read: Callable[[], T]) -> T | None:
        """What was read; None, and a line that says so, if that failed on any process."""
        result, reason = None, "another process could not read it"
        try:
            with _without_warnings():
                result = read()
        except Exception as error:  # whatever a reader makes of bytes that mean nothing
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if everywhere(result is not None):
            return result
        self._say(f"the checkpoint of step {step} in {self.folder} is damaged ({reason})")
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Out of the way of their steps' next saves, for a person to look at."""
        moved = True
        for step in steps if is_first() else ():
            aside = self.folder.parent / DAMAGED
            try:
                aside.mkdir(exist_ok=True)
                number = sum(1 for p in aside.iterdir() if p.name.split(".")[0] == str(step))
                (self.folder / str(step)).rename(aside / f"{step}.{number}")
                self._say(f"it is moved to {aside / f'{step}.{number}'}; an older one is read")
            except OSError as error:
                moved = False
                self._say(f"it cannot be moved to {aside}: {error}")
        if not everywhere(moved):
            raise OSError(f"a damaged checkpoint in {self.folder} cannot be moved to {DAMAGED}")
        if steps:
            self._manager.reload()

    def close(self) -> None:
        """Wait for the last save.

        Raises:
          OSError: it cannot be written.
        """
        with self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextlib.contextmanager
    def _writing(self, step: int | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the file system, or of Orbax about it
            reason = " ".join(str(error).split())[:300]
            name = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            last = max(saved_steps(self.folder.parent), default=None)
            kept = "there is none yet" if last is None else f"the last good one is of step {last}"
            raise OSError(f"{name} cannot be written to {self.folder}: {reason}; {kept}") from error


def _optimizer(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in vars(state).items() if name != "params"}


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(x, jax.ShapeDtypeStruct):
        x = jnp.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
