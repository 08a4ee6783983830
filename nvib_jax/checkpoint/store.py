"""Writing a run's checkpoints: everything that is needed to continue the run or to use its model.

One Orbax step folder holds items of arrays under the names that the caller gives them, and `meta`
(JSON: the model's `Description`, versions, fingerprints). A training run saves `params`, a flat
dict, and `optimizer`: step, state, running mean of the loss. The position in the data is not saved,
because a batch is a function of (seed, step). Orbax writes under a temporary name and renames, so
every step folder was complete once. The reader (`reading.py`) detects damage since then, and reads
the checkpoint before it instead.
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

from nvib_jax.checkpoint.description import Description
from nvib_jax.checkpoint.integrity import fingerprints, seal
from nvib_jax.checkpoint.reading import CheckpointReader, quiet_orbax
from nvib_jax.checkpoint.retention import METRIC, Keep, saved_steps
from nvib_jax.processes import everywhere, is_first
from nvib_jax.progress import to_standard_error

_NOTES = "_CHECKPOINT_METADATA"


def _of_others(record: logging.LogRecord) -> bool:
    """Whether a log record is to be shown.

    It hides what asyncio logs when several of Orbax's writes fail together: Orbax raises the first
    error, and asyncio logs the others.
    """
    text = record.getMessage()
    return "exception was never retrieved" not in text or "orbax-checkpoint" not in text


@contextlib.contextmanager
def _quiet_tensorstore() -> Iterator[None]:
    """Hide the tracebacks of arrays whose writing fails because the first failure has closed the
    event loop.
    """
    plain = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            plain(kind, error, trace)

    sys.excepthook = hook
    try:
        yield
    finally:
        sys.excepthook = plain


# This filter is never removed, because asyncio logs at garbage collection, at any later time.
logging.getLogger("asyncio").addFilter(_of_others)
DAMAGED = "damaged"  # the folder to which a resumed run moves damaged checkpoints


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, but it never asks JAX for a notice of preemption; `Interrupt` does."""

    def reached_preemption(self, step: int) -> bool:
        """Always False, without asking JAX, because every question moves JAX's own step counter."""
        return False


class Checkpoints(CheckpointReader):
    """The checkpoints of a run that writes them, in a folder that all its processes see.

    Args:
      run_dir: the run.
      keep: how many of the last checkpoints to keep.
      best: how many with the lowest objective to keep besides.
      every: keep those at multiples of this number of steps forever; 0 keeps none of them.
      say: called with a line of text about a damaged checkpoint.

    Raises:
      OSError: the folder cannot be written to.
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
            except Exception:  # Orbax raises many kinds if a file of its own notes is damaged
                self._drop_step_metadata()
                self._manager = self._open()

    def _open(self) -> _Manager:
        return _Manager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, create=True, save_interval_steps=1
            ),
        )

    def _drop_step_metadata(self) -> None:
        """Remove Orbax's own notes: damaged ones stop its manager, and nothing needs them."""
        for step in saved_steps(self.folder.parent) if is_first() else ():
            (self.folder / str(step) / _NOTES).unlink(missing_ok=True)
        everywhere(True)  # a barrier: no process opens the folder before process 0 is done
        self._say(f"a {_NOTES} in {self.folder} is damaged; they are removed, nothing needs them")

    def steps(self) -> list[int]:
        """The saved steps, rising."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        items: dict[str, Any],
        description: Description,
        objective: float | None,
    ) -> None:
        """Save in the background, after waiting for the previous save to end.

        Args:
          step: of the run.
          items: name -> tree of arrays; one is "params".
          description: of the model, for the meta data.
          objective: the held-out loss; None if there was no time to measure it.

        Raises:
          OSError: this checkpoint or the previous one cannot be written.
        """
        if step in self._manager.all_steps():
            return
        found = {name: fingerprints(tree) for name, tree in items.items()}
        meta = {**description.to_json(), METRIC: objective, "step": step, "fingerprints": found}
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
        """Refuse a save that does not fit, before it fills the disk.

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
        """Raise the error of the save in the background if it has failed; never wait for it.

        Raises:
          OSError: the checkpoint cannot be written.
        """
        # `check_for_errors` does not help, because Orbax's own thread has taken the error already.
        with self._writing():
            if self._saving is not None and not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
          OSError: the checkpoint cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def resume(
        self, shapes: dict[str, Any], description: Description
    ) -> tuple[int, dict[str, Any]]:
        """As `restore`; damaged checkpoints after the one that is read are moved to `DAMAGED`.

        Raises:
          FileNotFoundError: there is no checkpoint.
          OSError: a damaged checkpoint cannot be moved.
          ValueError: as `restore`; if all are damaged, none is moved.
        """
        self.wait()
        step, items = self.restore(shapes, description)
        self._set_aside([later for later in self.steps() if later > step])
        return step, items

    def _set_aside(self, steps: list[int]) -> None:
        """Move these checkpoints aside, so that the run can save these steps again and a person
        can look at the damaged ones.
        """
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
        """Wait for the last save and close Orbax's manager.

        Raises:
          OSError: the checkpoint cannot be written.
        """
        said = self._failed
        try:
            with self._writing():
                try:
                    self._manager.wait_until_finished()
                finally:
                    self._manager.close()
        except OSError:
            if not said:  # otherwise it is the error that has already ended the run
                raise
        finally:
            self._quiet.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the file system's, or what Orbax makes of it
            self._failed = True
            step = self._saving
            name = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            last = max((s for s in saved_steps(self.folder.parent) if s != step), default=None)
            kept = "there is none yet" if last is None else f"the last good one is of step {last}"
            raise OSError(
                f"{name} cannot be written to {self.folder}: {_reason(error)}; {kept}"
            ) from error


def _reason(error: Exception) -> str:
    """The system's message if Orbax's contains a known one, otherwise the beginning of Orbax's."""
    text = " ".join(str(error).split())
    known = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return next((reason for reason in known if reason in text), text[:300])
