"""Checkpoints of a run: parameters, optimiser state, and all that is needed to go on without it.

One Orbax step folder holds three items: `params` (a flat dict), `optimizer` (step, state, running
mean of the loss) and `meta` (JSON: config, tokenizer, buckets, counts, versions, fingerprints). The
data's position is the step: a batch is a function of (seed, step). Orbax writes to a temporary name
and renames, so a folder that counts as a step was whole once; what has changed since is found by
the fingerprints (`integrity.py`), and the one before it is read. Reading runs no code of a file.
"""

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from nvib_jax.text_model import TextModel
from nvib_jax.training.config import Config, to_json
from nvib_jax.training.distributed import everywhere, is_first
from nvib_jax.training.integrity import (
    check_fingerprints,
    check_no_links,
    check_seal,
    fingerprints,
    seal,
)
from nvib_jax.training.portable import FORMAT, check_format, describe, model_of
from nvib_jax.training.state import TrainState

FOLDER = "checkpoints"
DAMAGED = "damaged"  # where damaged ones are moved by a run that goes on
METRIC = "objective"  # the loss on held-out data with the KLs at full weight
# What may differ between a run and its continuation, beside the mesh.
_FREE = {
    *("run_dir", "steps", "log_every", "eval_every", "eval_sentences", "cache_dir"),
    *("keep_checkpoints", "keep_best", "keep_every", "bad_step", "watchdog"),
}
T = TypeVar("T")


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr)


class _Keep(policies.PreservationPolicy):
    """Which checkpoints stay: the last, the best, and every so many steps.

    The objectives are those in the meta data, so that no other file can be damaged; best is lowest.
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
        meta = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
        return float(meta[METRIC])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")


def _is_step(path: Path) -> bool:
    return path.name.isdigit()


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
        say: Callable[[str], None] = _to_standard_error,
    ):
        self.folder = (Path(run_dir) / FOLDER).absolute()
        self._read_only, self._say = read_only, say
        self._keep = _Keep(self.folder, max(keep, 1), best, every)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            read_only=read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,
        )
        with _without_warnings(), self._writing():  # that the folder is read-only, as was asked
            self._manager = ocp.CheckpointManager(
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

    def save(self, state: TrainState, model: TextModel, objective: float) -> None:
        """Save in the background; waits for the save before it, if any.

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
        self._keep.objectives[step] = objective
        with self._writing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(**trees, meta=ocp.args.JsonSave(seal(meta))),
            )

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
        wanted = {"params": shapes.params, "optimizer": _optimizer(shapes)}
        for step, meta in self.metas():
            _check_same(model, meta, self.folder)
            items = self.read(step, meta, wanted)
            if items is not None:
                return TrainState(params=items["params"], **items["optimizer"])
        raise ValueError(f"no checkpoint in {self.folder} is whole")

    def metas(self, which: str = "last") -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, meta data) of the checkpoints whose meta data are whole, the wanted one first.

        Args:
          which: "last", or "best" for the lowest objective.

        Raises:
          FileNotFoundError: there is no checkpoint.
        """
        steps = self.steps()[::-1]
        if not steps:
            raise FileNotFoundError(f"{self.folder} has no finished checkpoint")
        found = ((step, self._whole(step, partial(self._meta, step))) for step in steps)
        whole = ((step, meta) for step, meta in found if meta is not None)
        if which == "last":
            return whole
        return iter(sorted(whole, key=lambda pair: pair[1].get(METRIC, float("inf"))))

    def read(
        self, step: int, meta: dict[str, Any], shapes: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Items of a checkpoint as arrays; None, and a line that says so, where it is damaged.

        Args:
          step: one of `metas`.
          meta: its meta data.
          shapes: item -> tree of shapes with shardings.
        """

        def read() -> dict[str, Any]:
            items = self._read_items(step, shapes)
            for name, tree in items.items():
                check_fingerprints(tree, meta["fingerprints"][name])
            return items

        return self._whole(step, read)

    def _read_items(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: found[name] for name in shapes}

    def _meta(self, step: int) -> dict[str, Any]:
        check_no_links(self.folder / str(step))
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = dict(self._manager.restore(step, args=args).meta)
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
        if not self._read_only:
            self._set_aside(step)
        return None

    def _set_aside(self, step: int) -> None:
        """Out of the way of the step's next save, for a person to look at."""
        if is_first():
            aside = self.folder.parent / DAMAGED
            aside.mkdir(exist_ok=True)
            number = sum(1 for p in aside.iterdir() if p.name.split(".")[0] == str(step))
            with self._writing():
                (self.folder / str(step)).rename(aside / f"{step}.{number}")
            self._say(f"it is moved to {aside / f'{step}.{number}'}, and the one before it is read")
        everywhere(True)
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


def saved_steps(run_dir: str | Path) -> list[int]:
    """Steps of a run's checkpoints, rising; touches nothing."""
    return sorted(int(p.name) for p in (Path(run_dir) / FOLDER).glob("*") if _is_step(p))


def load_model(
    run_dir: str | Path, *, which: str = "best", say: Callable[[str], None] = _to_standard_error
) -> TextModel:
    """The model of a run; see `TextModel.load`."""
    folder = Path(run_dir) / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(f"{run_dir} is no run: it has no folder {FOLDER}")
    if which not in ("best", "last"):
        raise ValueError(f"which is {which!r}; wanted 'best' or 'last'")
    checkpoints = Checkpoints(run_dir, read_only=True, say=say)
    try:
        for step, meta in checkpoints.metas(which):
            model = model_of(meta, folder)
            _check_shapes(model, meta, folder)
            items = checkpoints.read(step, meta, {"params": model.params})
            if items is not None:
                return dataclasses.replace(model, params=items["params"])
        raise ValueError(f"no checkpoint in {folder} is whole")
    finally:
        checkpoints.close()


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


def _check_shapes(model: TextModel, meta: dict[str, Any], folder: Path) -> None:
    """That this version's model of a config has the parameters that were saved."""
    found = meta["fingerprints"]["params"]
    saved = {path[2:-2]: value.split(" ", 1)[1] for path, value in found.items()}  # "['name']"
    differ = [
        f"{name} is saved as {saved.get(name)}, the config makes it {array.dtype}{[*array.shape]}"
        for name, array in model.params.items()
        if saved.get(name) != f"{array.dtype}{[*array.shape]}"
    ]
    if differ:
        raise ValueError(f"{folder} is of another model: {'; '.join(differ)}")


def _check_same(model: TextModel, meta: dict[str, Any], folder: Path) -> None:
    """A continuation may run longer and elsewhere and log otherwise; all else must be as it was."""
    wanted, found = (_flat(c) for c in (model.config, check_format(meta, folder)))
    differ = [
        f"{name} is {wanted[name]!r}, saved as {found[name]!r}"
        for name in wanted
        if wanted[name] != found[name]
        and name.split(".")[-1] not in _FREE
        and not name.startswith("mesh.")
    ]
    if differ:
        raise ValueError(f"{folder} is of another config: {'; '.join(differ)}")
    now = describe(model)
    if differ := [n for n in ("tokenizer", "buckets") if now[n] != meta[n]]:
        raise ValueError(
            f"{folder} is of other data: its {' and '.join(differ)} differ; "
            "has the text changed since?"
        )


def _flat(config: Config) -> dict[str, Any]:
    out: dict[str, Any] = {}

    def add(tree: dict[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{name}.")
            else:
                out[prefix + name] = value

    add(json.loads(to_json(config)), "")
    return out
