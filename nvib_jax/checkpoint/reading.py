"""Reading a run's checkpoints: the wanted one, or the next one that is undamaged.

A checkpoint is not trusted. Its folder must hold plain files only, its meta data must match their
seal and the step in the folder's name, and its arrays must have the fingerprints that were saved.
If a running training removes a checkpoint while it is read, the next one is read. The reader
changes nothing in the folder, and executes no code from a file.
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
from nvib_jax.checkpoint.description import Description
from nvib_jax.checkpoint.integrity import Damaged, check_fingerprints, fingerprints
from nvib_jax.checkpoint.retention import FOLDER, objective_of, read_meta, saved_steps
from nvib_jax.processes import everywhere
from nvib_jax.progress import to_standard_error

_PATIENCE = 0.5  # seconds to wait for a checkpoint that is being removed to disappear
T = TypeVar("T")


class CheckpointReader:
    """The checkpoints of one run directory, read-only.

    Args:
      run_dir: the run.
      say: called with a line of text about a damaged checkpoint.
    """

    def __init__(self, run_dir: str | Path, *, say: Callable[[str], None] = to_standard_error):
        self.folder = (Path(run_dir) / FOLDER).absolute()
        self._say = say

    def steps(self) -> list[int]:
        """The saved steps, rising."""
        return saved_steps(self.folder.parent)

    def metas(self, which: str = "last") -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, meta data) of all checkpoints with undamaged meta data, the wanted one first.

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
        """As `metas`. The folder is listed again each time, because a run may be writing to it."""
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
        """Items of a checkpoint as arrays; None, and a line of text, if it is damaged.

        Args:
          step: one that `metas` gave.
          meta: its meta data.
          shapes: item -> tree of shapes with shardings.
        """
        items = self._whole(step, partial(self._read_items, step, shapes))
        if items is None:
            return None

        def check() -> dict[str, Any]:
            # All fingerprints are computed before any is compared, because computing one takes all
            # processes, and a process that raised at the first would be missing at the second.
            found = {name: fingerprints(tree) for name, tree in items.items()}
            for name in found:
                check_fingerprints(found[name], meta["fingerprints"][name])
            return items

        return self._whole(step, check)

    def restore(
        self, shapes: dict[str, Any], description: Description
    ) -> tuple[int, dict[str, Any]]:
        """(step, items) of the last undamaged checkpoint.

        Args:
          shapes: item -> tree of arrays, or of shapes with shardings, like those that were saved.
          description: of the model of the run that is to be continued.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: the checkpoint is of another config than `description` (the error names the
            fields that differ) or of other data; or all are damaged.
        """
        wanted = jax.tree.map(_abstract, shapes)
        for step, meta in self.metas():
            check_same_run(description, meta, self.folder)
            items = self.read(step, meta, wanted)
            if items is not None:
                return step, items
        raise ValueError(f"no checkpoint in {self.folder} is whole")

    def _read_items(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        """Read the arrays with Orbax's handlers rather than its manager.

        The manager ends with a barrier: if one process finds its files damaged and raises, the
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
        """The result of `read()`; None, and a line of text, if that failed on any process."""
        result, reason = None, "another process could not read it"
        try:
            with quiet_orbax():
                result = read()
        except Exception as error:  # readers raise anything on damaged bytes
            kind = "" if isinstance(error, Damaged) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())[:300]
        if everywhere(result is not None):
            return result
        if not self._is_removed(step):
            self._say(f"the checkpoint of step {step} in {self.folder} is damaged ({reason})")
        return None

    def _is_removed(self, step: int) -> bool:
        """Whether the checkpoint failed to be read only because a running training removed it."""
        end = time.monotonic() + _PATIENCE
        while (self.folder / str(step)).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Hide what Orbax logs; its errors are still raised, and reported here in one sentence."""

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
