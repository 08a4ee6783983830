"""A model as files that need neither this run nor Orbax: safetensors and JSON.

`describe` and `model_of` turn all of a model but its parameters into JSON values and back;
checkpoints hold the same. Both kinds of files are data: reading them runs no code.
"""

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nvib_jax
from nvib_jax.data.config import SPLITS
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.files import draft_of, write_whole
from nvib_jax.models.structure import structure
from nvib_jax.text_model import TextModel
from nvib_jax.training.config import Config, from_json, to_json

FORMAT = 3
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def describe(model: TextModel) -> dict[str, Any]:
    """All of a model but its parameters, as JSON values."""
    return {
        "format": FORMAT,
        "nvib_jax": nvib_jax.__version__,
        "jax": jax.__version__,
        "config": to_json(model.config),
        "tokenizer": base64.b64encode(model.tokenizer.to_bytes()).decode(),
        "buckets": list(model.buckets),
        "count_probabilities": [float(p) for p in model.count_probabilities],
    }


def check_format(meta: dict[str, Any], where: str | Path) -> Config:
    """The config of a description.

    Raises:
      ValueError: a format that this version does not read, or a field that it lacks.
    """
    if meta.get("format") != FORMAT:
        raise ValueError(f"{where} has format {meta.get('format')!r}; this version reads {FORMAT}")
    return from_json(meta["config"])


def model_of(meta: dict[str, Any], where: str | Path) -> TextModel:
    """The inverse of `describe`; the parameters are shapes.

    Raises:
      ValueError: as `check_format`.
    """
    config = check_format(meta, where)
    tokenizer = Tokenizer.from_bytes(base64.b64decode(meta["tokenizer"]))
    counts = np.asarray(meta["count_probabilities"])
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes: Any = {
        name: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=one)
        for name, shape in structure(config, tokenizer.vocab_size, meta["buckets"][-1])[1].items()
    }
    return TextModel.create(config, tokenizer, meta["buckets"], counts, params=shapes)


def without_places(config: Config) -> Config:
    """The config without the folders of the machine it ran on, which mean nothing on another.

    Data that have a digest are found by it: of files of text with absolute names, the last part is
    left, which says what they were.
    """
    data = config.data
    places: dict[str, Any] = {}
    if data.digest:
        for split in SPLITS:
            paths = getattr(data, split)
            places[split] = tuple(Path(p).name if p.startswith(("/", "~")) else p for p in paths)
        places["tfds_dir"] = ""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, cache_dir="", **places),
        train=dataclasses.replace(config.train, run_dir=""),
    )


def export(model: TextModel, folder: str | Path) -> list[Path]:
    """Write a model as `model.safetensors` (its parameters by name) and `model.json`.

    Neither says where it was trained: folders are left out of its config.

    Args:
      model: any.
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
    arrays = {name: np.asarray(value, order="C") for name, value in model.params.items()}
    with draft_of(files[0]) as draft:
        try:
            save_file(arrays, draft, metadata={"format": "np"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(" ".join(str(error).split())) from error
    try:
        described = describe(dataclasses.replace(model, config=without_places(model.config)))
        write_whole(files[1], json.dumps(described, indent=1) + "\n")
    except OSError:  # half a model would stand in the way of the next attempt
        files[0].unlink(missing_ok=True)
        raise
    return files


def load_exported(folder: str | Path) -> TextModel:
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
        model = model_of(meta, folder)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / DESCRIPTION} is no description: {error!r}") from error
    wanted = {name: (array.shape, array.dtype) for name, array in model.params.items()}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if differ := sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)):
        raise ValueError(
            f"{folder} holds other parameters than its {DESCRIPTION} says: {', '.join(differ[:5])}"
        )
    return dataclasses.replace(model, params={n: jax.device_put(a) for n, a in arrays.items()})
