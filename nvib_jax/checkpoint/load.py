"""Loads the model from a run's folder, or from one that `nvib export` wrote."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from nvib_jax.checkpoint.compatible import check_shapes
from nvib_jax.checkpoint.description import model_of
from nvib_jax.checkpoint.exported import WEIGHTS, load_exported
from nvib_jax.checkpoint.reading import CheckpointReader
from nvib_jax.checkpoint.retention import FOLDER
from nvib_jax.progress import to_standard_error
from nvib_jax.text_model import TextModel


def load_model(
    path: str | Path, *, which: str = "best", say: Callable[[str], None] = to_standard_error
) -> TextModel:
    """The model in a folder; see `TextModel.load`.

    Args:
      path: the folder.
      which: "best" or "last" checkpoint of a run.
      say: called with a line of text about a damaged checkpoint.
    """
    return load_with_step(path, which=which, say=say)[0]


def load_with_step(
    path: str | Path, *, which: str = "best", say: Callable[[str], None] = to_standard_error
) -> tuple[TextModel, int | None]:
    """(model, step of the checkpoint that was read); the step is None for an exported model."""
    folder = Path(path) / FOLDER
    if which not in ("best", "last"):
        raise ValueError(f"which is {which!r}; wanted 'best' or 'last'")
    if (Path(path) / WEIGHTS).exists():
        return load_exported(path), None
    if not folder.is_dir():
        runs = sorted(str(p.parent) for p in Path(path).parent.glob(f"*/{FOLDER}"))[:5]
        hint = f"; there are {', '.join(runs)}" if runs else "; nvib train makes one"
        raise FileNotFoundError(f"{path} is no run: it has no folder {FOLDER}{hint}")
    checkpoints = CheckpointReader(path, say=say)
    for step, meta in checkpoints.metas(which):
        model = model_of(meta, folder)
        check_shapes(model, meta, folder)
        items = checkpoints.read(step, meta, {"params": model.params})
        if items is not None:
            return dataclasses.replace(model, params=items["params"]), step
    raise ValueError(f"no checkpoint in {folder} is whole")
