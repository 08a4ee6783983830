"""`Description`: all of a model but its parameters, as checkpoints and exported models hold it."""

import base64
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nvib_jax
from nvib_jax.config import Config
from nvib_jax.data.config import SPLITS
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.mesh import ambient
from nvib_jax.models.build import Structure, build
from nvib_jax.models.params import Params, layout
from nvib_jax.presets import from_json, to_json

FORMAT = 3


@dataclass(frozen=True)
class Description:
    """All of a model but its parameters. `Description.create` makes one.

    Attributes:
      config: the resolved config of the run.
      tokenizer: text <-> ids; the special ids are its own.
      buckets: padded lengths, rising; the last is the longest sentence the model takes.
      count_probabilities: p(m), the share of training sentences with m present vectors, shape
        (max_length + 1,). If every token has a vector, it is the distribution of lengths. A `relu`
        model drops some vectors, and its decoder sees their number m and not the length n, so prior
        draws and bounds must use the distribution of m.
      structure: the module without its parameters.
    """

    config: Config
    tokenizer: Tokenizer
    buckets: tuple[int, ...]
    count_probabilities: np.ndarray
    structure: Structure

    @classmethod
    def create(
        cls,
        config: Config,
        tokenizer: Tokenizer,
        buckets: Sequence[int],
        count_probabilities: np.ndarray,
    ) -> "Description":
        """A description of the model that the config asks for; builds its structure."""
        structure = build(
            config.model,
            vocab_size=tokenizer.vocab_size,
            max_length=buckets[-1],
            seed=config.train.seed,
            special=tokenizer.ids,
        )
        return cls(config, tokenizer, tuple(buckets), count_probabilities, structure)

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens."""
        return self.buckets[-1]

    def fresh(self) -> Params:
        """Untrained parameters; on a mesh each device makes its own part."""
        mesh = ambient()
        return jax.jit(
            self.structure.init, out_shardings=mesh and layout(mesh, self.structure.shapes)
        )()

    def to_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        return {
            "format": FORMAT,
            "nvib_jax": nvib_jax.__version__,
            "jax": jax.__version__,
            "config": to_json(self.config),
            "tokenizer": base64.b64encode(self.tokenizer.to_bytes()).decode(),
            "buckets": list(self.buckets),
            "count_probabilities": [float(p) for p in self.count_probabilities],
        }

    @classmethod
    def of_json(cls, meta: dict[str, Any], where: str | Path) -> "Description":
        """The inverse of `to_json`; `where` names the file in errors.

        Raises:
          ValueError: as `config_of`.
        """
        config = config_of(meta, where)
        tokenizer = Tokenizer.from_bytes(base64.b64decode(meta["tokenizer"]))
        counts = np.asarray(meta["count_probabilities"])
        return cls.create(config, tokenizer, meta["buckets"], counts)

    def without_places(self) -> "Description":
        """This description with a config that names no folder of the machine it ran on."""
        return dataclasses.replace(self, config=without_places(self.config))


def config_of(meta: dict[str, Any], where: str | Path) -> Config:
    """The config of a description in JSON.

    Raises:
      ValueError: a format that this version does not read, or a field that it lacks.
    """
    if meta.get("format") != FORMAT:
        raise ValueError(f"{where} has format {meta.get('format')!r}; this version reads {FORMAT}")
    return from_json(meta["config"])


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
