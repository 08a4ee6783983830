"""A model as files that need neither this run nor Orbax: safetensors and JSON.

Both kinds of files are data: reading them runs no code.
"""

import json
from pathlib import Path

import jax
import numpy as np

from nvib_jax.checkpoint.description import Description
from nvib_jax.files import draft_of, write_whole
from nvib_jax.models.params import Params

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def export(description: Description, params: Params, folder: str | Path) -> list[Path]:
    """Write a model as `model.safetensors` (its parameters by name) and `model.json`.

    Neither says where it was trained: folders are left out of its config.

    Args:
      description: of the model.
      params: its parameters.
      folder: made if missing.

    Returns:
      The files.

    Raises:
      FileExistsError: the folder holds a model already.
      OSError: a file cannot be written; names it, and leaves neither.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = Path(folder)
    files = [folder / WEIGHTS, folder / DESCRIPTION]
    if any(file.exists() for file in (*files, folder / "checkpoints")):
        raise FileExistsError(f"{folder} holds a run or an exported model; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(value, order="C") for name, value in params.items()}
    with draft_of(files[0]) as draft:
        try:
            save_file(arrays, draft, metadata={"format": "np"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(" ".join(str(error).split())) from error
    try:
        described = description.without_places().to_json()
        write_whole(files[1], json.dumps(described, indent=1) + "\n")
    except OSError:  # half a model would stand in the way of the next attempt
        files[0].unlink(missing_ok=True)
        raise
    return files


def load_exported(folder: str | Path) -> tuple[Description, Params]:
    """The inverse of `export`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: files of another version, cut short, or that do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no exported model: it has no {name}")
    try:
        meta = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        arrays = load_file(folder / WEIGHTS)
        description = Description.of_json(meta, folder)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / DESCRIPTION} is no description: {error!r}") from error
    shapes = description.structure.shapes
    wanted = {name: (array.shape, array.dtype) for name, array in shapes.items()}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if differ := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
        raise ValueError(
            f"{folder} holds other parameters than its {DESCRIPTION} says: {', '.join(differ[:5])}"
        )
    return description, {n: jax.device_put(a) for n, a in arrays.items()}
