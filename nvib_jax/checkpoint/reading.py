"""Reading the checkpoints of a run: the wanted one that is whole; the folder stays as it is.

A checkpoint is not trusted. Its folder must hold plain files only, its meta data must be sealed and
of the step that the folder's name says, and its arrays must have the fingerprints that were saved.
The run may go on meanwhile and remove a checkpoint under the reader: then the next one is read.
Reading runs no code of a file.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from nvib_jax.checkpoint.compatible import check_same_run
from nvib_jax.checkpoint.integrity import Damaged, check_fingerprints, fingerprints
from nvib_jax.checkpoint.retention import FOLDER, objective_of, read_meta, saved_steps
from nvib_jax.processes import everywhere
from nvib_jax.progress import to_standard_error
from nvib_jax.text_model import TextModel
from nvib_jax.training.state import TrainState

_PATIENCE = 0.5  # seconds in which a checkpoint that is being removed is gone
T = TypeVar("T")


class CheckpointReader:
    """The checkpoints of one run directory, as somebody sees them who only reads.

    Args:
      run_dir: the run.
      say: told of a damaged checkpoint.
    """

    def __init__(self, run_dir: str | Path, *, say: Callable[[str], None] = to_standard_error):
        self.folder = (Path(run_dir) / FOLDER).absolute()
        self._say = say

    def steps(self) -> list[int]:
        """Steps that are there, rising."""
        return saved_steps(self.folder.parent)

    def metas(self, which: str = "last") -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, meta data) of the checkpoints whose meta data are whole, the wanted one first.

        Args:
          which: "last", or "best" for the lowest objective.

        Raises:
          FileNotFoundError: there is no checkpoint.
        """
        if not self.steps():
            raise FileNotFoundError(
                f"{self.folder} has no finished checkpoint; the first is of step train.eval_every"
            )
        return self._metas(which)

    def _metas(self, which: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """As `metas`; the folder is listed anew for each, because a run may be writing to it."""
        read: dict[int, dict[str, Any] | None] = {}
        given: set[int] = set()
        while True:
            rest = [step for step in self.steps()[::-1] if step not in given]
            if which == "best":
                for step in rest:
                    if step not in read:
                        read[step] = self._whole(step, partial(read_meta, self.folder / str(step)))
                rest.sort(key=lambda step: objective_of(read[step]))
            if not rest:
                return
            step = rest[0]
            given.add(step)
            if step not in read:
                read[step] = self._whole(step, partial(read_meta, self.folder / str(step)))
            meta = read[step]
            if meta is not None:
                yield step, meta

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

    def restore(self, state: TrainState, model: TextModel) -> TrainState:
        """The last state that is whole.

        Args:
          state: of arrays, or of shapes with shardings: what comes back is like it.
          model: what is to be continued.

        Raises:
          FileNotFoundError: nothing to resume from.
          ValueError: the checkpoint is of another config than `model`, the fields that differ are
            named, or of other data; or none is whole.
        """
        shapes = jax.tree.map(_abstract, state)
        wanted = {"params": shapes.params, "optimizer": optimizer_of(shapes)}
        for step, meta in self.metas():
            check_same_run(model, meta, self.folder)
            items = self.read(step, meta, wanted)
            if items is not None:
                return TrainState(params=items["params"], **items["optimizer"])
        raise ValueError(f"no checkpoint in {self.folder} is whole")

    def _read_items(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        """The arrays, without Orbax's manager.

        It ends each reading with a barrier: if one process found its files damaged and raised, the
        others would wait for it forever.
        """
        folder = epath.Path(self.folder) / str(step)
        return {
            name: ocp.StandardCheckpointHandler().restore(
                folder / name, args=ocp.args.StandardRestore(tree)
            )
            for name, tree in shapes.items()
        }

    def _whole(self, step: int, read: Callable[[], T]) -> T | None:
        """What was read; None, and a line that says so, if that failed on any process."""
        result, reason = None, "another process could not read it"
        try:
            with quiet_orbax():
                result = read()
        except Exception as error:  # whatever a reader makes of bytes that mean nothing
            kind = "" if isinstance(error, Damaged) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())[:300]
        if everywhere(result is not None):
            return result
        if not self._is_removed(step):
            self._say(f"the checkpoint of step {step} in {self.folder} is damaged ({reason})")
        return None

    def _is_removed(self, step: int) -> bool:
        """Whether the run that this reader looks at is removing a checkpoint that it may remove."""
        end = time.monotonic() + _PATIENCE
        while (self.folder / str(step)).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


def optimizer_of(state: TrainState) -> dict[str, Any]:
    """All of a state but its parameters."""
    return {name: value for name, value in vars(state).items() if name != "params"}


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Without what Orbax logs by the way: its errors are raised, and said in one sentence here."""

    def of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(x, jax.ShapeDtypeStruct):
        x = jnp.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
