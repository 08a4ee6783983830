"""Loads a model from a run's folder, from one that `nvib export` wrote, or from the Hub."""

import os
from collections.abc import Callable
from pathlib import Path

import jax

from nvib_jax import hub
from nvib_jax.checkpoint.compatible import check_shapes
from nvib_jax.checkpoint.description import Description
from nvib_jax.checkpoint.exported import DESCRIPTION, WEIGHTS, load_exported
from nvib_jax.checkpoint.reading import CheckpointReader
from nvib_jax.checkpoint.retention import FOLDER
from nvib_jax.models.params import Params
from nvib_jax.progress import to_standard_error


def load(
    path: str | os.PathLike[str],
    *,
    which: str = "best",
    revision: str | None = None,
    local_only: bool = False,
    say: Callable[[str], None] = to_standard_error,
) -> tuple[Description, Params, int | None]:
    """(all of the model but its parameters, they, the step of the checkpoint that was read).

    Args:
      path: the folder, or a name of the Hub; the step of an exported model is None.
      which: "best" or "last" checkpoint of a run.
      revision: of the Hub.
      local_only: whether the Hub is left alone.
      say: called with a line of text about a damaged checkpoint, or about the Hub's revision.

    Raises:
      FileNotFoundError, ValueError: as `nvib_jax.text_model.TextModel.load`.
    """
    if which not in ("best", "last"):
        raise ValueError(f"which is {which!r}; wanted 'best' or 'last'")
    run = _folder(path, revision, local_only, say)
    folder = run / FOLDER
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


def _folder(
    path: str | os.PathLike[str],
    revision: str | None,
    local_only: bool,
    say: Callable[[str], None],
) -> Path:
    """The folder itself; that of a model of the Hub, downloaded, if the path can only be its name.

    `runs/quikstart` is not looked for on the Hub if there is a folder `runs`.
    """
    here, name = Path(path), str(path)
    if revision is not None and here.is_dir():
        raise ValueError(f"revision is {revision!r}, but {name} is a folder, which has none")
    if (here.parent.is_dir() and revision is None) or not hub.is_name(name):
        return here
    folder, found = hub.download(
        name, (WEIGHTS, DESCRIPTION), revision=revision, local_only=local_only
    )
    say(f"{name}: revision {found}")
    return folder
