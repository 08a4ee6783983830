"""Checkpoints of a run: parameters, optimiser state, and all that is needed to go on without it.

One Orbax step folder holds three items: `params` (a flat dict), `optimizer` (step, state, running
mean of the loss) and `meta` (JSON: config, tokenizer, buckets, counts, versions, fingerprints). The
data's position is the step: a batch is a function of (seed, step). Orbax writes to a temporary name
and renames, so a folder that counts as a step was whole once; what has changed since is found by
whoever reads it (`reading.py`), and the one before it is read.
"""

import contextlib
import errno
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from nvib_jax.checkpoint.description import describe
from nvib_jax.checkpoint.integrity import fingerprints, seal
from nvib_jax.checkpoint.reading import CheckpointReader, optimizer_of, quiet_orbax
from nvib_jax.checkpoint.retention import METRIC, Keep, saved_steps
from nvib_jax.processes import everywhere, is_first
from nvib_jax.progress import to_standard_error
from nvib_jax.text_model import TextModel
from nvib_jax.training.state import TrainState

_NOTES = "_CHECKPOINT_METADATA"


def _of_others(record: logging.LogRecord) -> bool:
    """Not of Orbax's writing: when one array fails, asyncio logs those that failed beside it."""
    text = record.getMessage()
    return "exception was never retrieved" not in text or "orbax-checkpoint" not in text


@contextlib.contextmanager
def _quiet_tensorstore() -> Iterator[None]:
    """Without the traceback of each array that fails after the first one has closed the loop."""
    plain = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            plain(kind, error, trace)

    sys.excepthook = hook
    try:
        yield
    finally:
        sys.excepthook = plain


logging.getLogger("asyncio").addFilter(_of_others)  # for good: it logs when the garbage goes
DAMAGED = "damaged"  # where damaged ones are moved by a run that goes on


class _Manager(ocp.CheckpointManager):
    """Orbax's, but for a notice of preemption, which `Interrupt` alone may ask for."""

    def reached_preemption(self, step: int) -> bool:
        """Never: every question moves JAX's own counter of steps."""
        return False


class Checkpoints(CheckpointReader):
    """The checkpoints of a run that writes them, in a folder that all its processes see.

    Args:
      run_dir: the run.
      keep: how many of the last to keep.
      best: how many with the lowest objective to keep beside them.
      every: keep those at multiples of so many steps for good; 0 keeps none of them.
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
        say: Callable[[str], None] = to_standard_error,
    ):
        super().__init__(run_dir, say=say)
        self._keep = Keep(self.folder, max(keep, 1), best, every)
        self._saving: int | None = None  # the step that is being written in the background
        self._failed = False
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(quiet_orbax())
        self._quiet.enter_context(_quiet_tensorstore())
        with self._writing():
            try:
                self._manager = self._open()
            except OSError:
                raise
            except Exception:  # whatever Orbax makes of a file that it could do without
                self._drop_step_metadata()
                self._manager = self._open()

    def _open(self) -> _Manager:
        handler = ocp.StandardCheckpointHandler
        return _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, create=True, save_interval_steps=1
            ),
            item_handlers={
                "params": handler(),
                "optimizer": handler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def _drop_step_metadata(self) -> None:
        """Remove Orbax's own notes: its manager fails on damaged ones, nobody here reads them."""
        for step in saved_steps(self.folder.parent) if is_first() else ():
            (self.folder / str(step) / _NOTES).unlink(missing_ok=True)
        everywhere(True)  # nobody opens the folder before process 0 has done so
        self._say(f"a {_NOTES} in {self.folder} is damaged; they are removed, nothing needs them")

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
        items = {"params": state.params, "optimizer": optimizer_of(state)}
        found = {name: fingerprints(tree) for name, tree in items.items()}
        meta = {**describe(model), METRIC: objective, "step": step, "fingerprints": found}
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._keep.objectives[step] = math.inf if objective is None else objective
        self.wait()
        self._saving = step
        with self._writing():
            self._check_space(items)
            if not self._manager.save(
                step,
                args=ocp.args.Composite(**trees, meta=ocp.args.JsonSave(seal(meta))),
            ):
                raise OSError(f"there is one of a later step, {max(self.steps(), default=None)}")

    def _check_space(self, items: Any) -> None:
        """Refuse what does not fit: a writer that runs into the end of a disk wastes what is left.

        Raises:
          OSError: on all processes, if one of them sees too little space.
        """
        needed = sum(array.nbytes for array in jax.tree.leaves(items))
        free = shutil.disk_usage(self.folder).free
        if not everywhere(needed <= free):
            raise OSError(
                f"it takes {needed / 2**20:,.1f} MiB and {free / 2**20:,.1f} MiB are free"
            )

    def check(self) -> None:
        """Nothing, without waiting, unless the save in the background has failed.

        Raises:
          OSError: it cannot be written.
        """
        # `check_for_errors` would say nothing: Orbax's own thread has taken the error already.
        with self._writing():
            if self._saving is not None and not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()

    def wait(self) -> None:
        """Until the last save is whole.

        Raises:
          OSError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def resume(self, state: TrainState, model: TextModel) -> TrainState:
        """As `restore`; damaged ones after the last that is whole are moved out of the way.

        Raises:
          FileNotFoundError: nothing to resume from.
          OSError: a damaged one cannot be moved.
          ValueError: as `restore`; if none is whole, none is moved.
        """
        self.wait()
        state = self.restore(state, model)
        self._set_aside([step for step in self.steps() if step > int(state.step)])
        return state

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
        said = self._failed
        try:
            with self._writing():
                try:
                    self._manager.wait_until_finished()
                finally:
                    self._manager.close()
        except OSError:
            if not said:  # the same error, which has ended the run already
                raise
        finally:
            self._quiet.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the file system, or of Orbax about it
            self._failed = True
            step = self._saving
            name = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            last = max((s for s in saved_steps(self.folder.parent) if s != step), default=None)
            kept = "there is none yet" if last is None else f"the last good one is of step {last}"
            raise OSError(
                f"{name} cannot be written to {self.folder}: {_reason(error)}; {kept}"
            ) from error


def _reason(error: Exception) -> str:
    """What the system said, where it is known; otherwise the beginning of what Orbax says of it."""
    text = " ".join(str(error).split())
    known = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return next((reason for reason in known if reason in text), text[:300])
