"""Loads a model from a run's folder, or from one that `nvib export` wrote."""

import os
from collections.abc import Callable
from pathlib import Path

import jax

from nvib_jax.checkpoint.compatible import check_shapes
from nvib_jax.checkpoint.description import Description
from nvib_jax.checkpoint.exported import WEIGHTS, load_exported
from nvib_jax.checkpoint.reading import CheckpointReader
from nvib_jax.checkpoint.retention import FOLDER
from nvib_jax.models.params import Params
from nvib_jax.progress import to_standard_error


def load(
    path: str | os.PathLike[str],
    *,
    which: str = "best",
    say: Callable[[str], None] = to_standard_error,
) -> tuple[Description, Params, int | None]:
    """(all of the model but its parameters, they, the step of the checkpoint that was read).

    Args:
      path: the folder; the step of an exported model is None.
      which: "best" or "last" checkpoint of a run.
      say: called with a line of text about a damaged checkpoint.

    Raises:
      FileNotFoundError, ValueError: as `nvib_jax.text_model.TextModel.load`.
    """
    run = Path(path)
    folder = run / FOLDER
    if which not in ("best", "last"):
        raise ValueError(f"which is {which!r}; wanted 'best' or 'last'")
    if (run / WEIGHTS).exists():
        return *load_exported(run), None
    if not folder.is_dir():
        runs = sorted(str(p.parent) for p in run.parent.glob(f"*/{FOLDER}"))[:5]
        hint = f"; there are {', '.join(runs)}" if runs else "; nvib train makes one"
        raise FileNotFoundError(f"{path} is no run: it has no folder {FOLDER}{hint}")
    checkpoints = CheckpointReader(run, say=say)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for step, meta in checkpoints.metas(which):
        description = Description.of_json(meta, folder)
        check_shapes(description, meta, folder)
        shapes = {
            name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=one)
            for name, shape in description.structure.shapes.items()
        }
        items = checkpoints.read(step, meta, {"params": shapes})
        if items is not None:
            return description, items["params"], step
    raise ValueError(f"no checkpoint in {folder} is whole")
