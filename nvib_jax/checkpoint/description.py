"""`describe` and `model_of`: all of a model but its parameters as JSON values, and back.

Checkpoints and exported models hold the same.
"""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nvib_jax
from nvib_jax.config import Config
from nvib_jax.data.config import SPLITS
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.models.structure import structure
from nvib_jax.presets import from_json, to_json
from nvib_jax.text_model import TextModel

FORMAT = 3


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
