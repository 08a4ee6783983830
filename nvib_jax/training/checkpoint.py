"""Checkpoints of a run: parameters, optimiser state, and all that is needed to go on without it.

One Orbax step folder holds three items: `params` (a flat dict), `optimizer` (step and state) and
`meta` (JSON: config, tokenizer, buckets, lengths, versions). The data's position is the step: a
batch is a function of (seed, step). Orbax writes to a temporary name and renames, so a folder that
counts as a step is whole.
"""

import base64
import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

import nvib_jax
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.text_model import TextModel
from nvib_jax.training.config import Config, from_json, to_json
from nvib_jax.training.state import TrainState

FORMAT = 2
FOLDER = "checkpoints"
METRIC = "objective"  # best is lowest: the loss on held-out data with the KLs at full weight
# What may differ between a run and its continuation.
_FREE = {"run_dir", "steps", "log_every", "eval_every", "eval_sentences", "keep_checkpoints"}


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run_dir: the run.
      keep: how many of the last to keep beside the best.
      read_only: leave the folder as it is, whoever writes to it.
    """

    def __init__(self, run_dir: str | Path, *, keep: int = 1, read_only: bool = False):
        self.folder = (Path(run_dir) / FOLDER).absolute()
        best = policies.BestN(get_metric_fn=_objective, reverse=True, n=1)
        policy = policies.AnyPreservationPolicy([policies.LatestN(n=max(keep, 1)), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=_objective,
            best_mode="min",
            read_only=read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,
        )
        with _without_warnings():  # that the folder is read-only, as was asked
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
        """Steps that can be restored, rising."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, model: TextModel, objective: float) -> None:
        """Save in the background; waits for the save before it, if any."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        optimizer = {"step": state.step, "state": state.opt_state}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(optimizer),
                meta=ocp.args.JsonSave(_meta(model)),
            ),
            metrics={METRIC: objective},
        )

    def restore(self, state: TrainState, model: TextModel) -> TrainState:
        """The last state, in the shapes and placements of `state`.

        Raises:
          FileNotFoundError: nothing to resume from.
          ValueError: the checkpoint is of another config than `model`, the fields that differ are
            named, or of other data.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"{self.folder} has no checkpoint")
        step = steps[-1]
        meta = self._manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta
        _check_same(model.config, _config(meta, self.folder), self.folder)
        now = _meta(model)
        if differ := [n for n in ("tokenizer", "buckets") if now[n] != meta[n]]:
            raise ValueError(
                f"{self.folder} is of other data: its {' and '.join(differ)} differ; "
                "has the text changed since?"
            )
        abstract = jax.tree.map(_abstract, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore(
                    {"step": abstract.step, "state": abstract.opt_state}
                ),
            ),
        )
        optimizer = restored.optimizer
        return TrainState(optimizer["step"], restored.params, optimizer["state"])

    def close(self) -> None:
        """Wait for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def saved_steps(run_dir: str | Path) -> list[int]:
    """Steps of a run's whole checkpoints, rising; touches nothing."""
    return sorted(int(p.name) for p in (Path(run_dir) / FOLDER).glob("*") if p.name.isdigit())


def load_model(run_dir: str | Path, *, which: str = "best") -> TextModel:
    """The model of a run; see `TextModel.load`."""
    folder = Path(run_dir) / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(f"{run_dir} is no run: it has no folder {FOLDER}")
    if which not in ("best", "last"):
        raise ValueError(f"which is {which!r}; wanted 'best' or 'last'")
    checkpoints = Checkpoints(run_dir, read_only=True)
    try:
        manager = checkpoints._manager
        step = manager.best_step() if which == "best" else manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{folder} has no finished checkpoint")
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        model = TextModel.create(
            _config(meta, folder),
            Tokenizer.from_bytes(base64.b64decode(meta["tokenizer"])),
            meta["buckets"],
            np.asarray(meta["count_probabilities"]),
        )
        abstract = jax.tree.map(_abstract, model.params)
        _check_shapes(abstract, manager.item_metadata(step).params, folder)
        params = manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        ).params
        return dataclasses.replace(model, params=params)
    finally:
        checkpoints.close()


def _objective(metrics: Any) -> float:
    return float(metrics[METRIC])


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    x = jnp.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_shapes(wanted: dict[str, Any], saved: Any, folder: Path) -> None:
    shapes = {name: tuple(array.shape) for name, array in saved.items()}
    differ = [
        f"{name} is saved as {shapes.get(name)}, the config makes it {array.shape}"
        for name, array in wanted.items()
        if shapes.get(name) != array.shape
    ]
    if differ:
        raise ValueError(f"{folder} is of another model: {'; '.join(differ)}")


def _meta(model: TextModel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "nvib_jax": nvib_jax.__version__,
        "jax": jax.__version__,
        "config": to_json(model.config),
        "tokenizer": base64.b64encode(model.tokenizer.to_bytes()).decode(),
        "buckets": list(model.buckets),
        "count_probabilities": [float(p) for p in model.count_probabilities],
    }


def _config(meta: dict[str, Any], folder: Path) -> Config:
    if meta.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {meta.get('format')!r}; this version reads {FORMAT}")
    return from_json(meta["config"])


def _check_same(now: Config, saved: Config, folder: Path) -> None:
    """A continuation may run longer and log otherwise; everything else must be as it was."""
    wanted, found = (_flat(json.loads(to_json(c))) for c in (now, saved))
    differ = [
        f"{name} is {wanted[name]!r}, saved as {found.get(name)!r}"
        for name in wanted
        if wanted[name] != found.get(name) and name.split(".")[-1] not in _FREE | {"cache_dir"}
    ]
    if differ:
        raise ValueError(f"{folder} is of another config: {'; '.join(differ)}")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
