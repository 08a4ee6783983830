"""Text from a data set of the Hugging Face Hub, streamed: `hf:USER/NAME:CONFIG@REVISION`.

The revision is resolved to a commit first, which names the prepared data in the cache. What is
streamed is never kept on the disk but as prepared data. The package `datasets` runs no code of a
data set from version 4 on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from nvib_jax.data.config import SPLITS, DataConfig, Split

T = TypeVar("T")
_NAME = re.compile(r"(?P<name>\w[\w.-]*(?:/[\w.-]+)?)(?::(?P<part>[^@]+))?(?:@(?P<revision>\S+))?")


@dataclass(frozen=True)
class Place:
    """A data set of the Hub.

    Attributes:
      name: USER/NAME.
      part: its configuration, as a language; None is the only one.
      commit: of the revision.
    """

    name: str
    part: str | None
    commit: str


def documents(config: DataConfig, split: Split) -> Iterator[str]:
    """The text feature of every example of a split, in the order of the data set.

    Raises:
      FileNotFoundError: no such data set, or the Hub cannot be reached.
      ImportError: `datasets` is not installed.
      ValueError: an unknown split or feature, or a feature that is no text.
    """
    place = _place(config.source)
    there = _splits(place)
    for name in split_names(config, split):
        if name not in there:
            raise ValueError(
                f"{config.source} has no split {name!r} (data.{split}), only {sorted(there)}"
            )
        for example in _examples(config.source, place, name):
            text = example.get(config.text_feature)
            if not isinstance(text, str):
                state = "no text in" if config.text_feature in example else "no feature"
                texts = sorted(key for key, value in example.items() if isinstance(value, str))
                raise ValueError(
                    f"{config.source} has {state} {config.text_feature!r} (data.text_feature); "
                    f"its text features are {texts}"
                )
            yield text


def _examples(source: str, place: Place, split: str) -> Iterator[dict[str, Any]]:
    stream = _ask(
        source,
        lambda datasets: iter(
            datasets.load_dataset(
                place.name, place.part, split=split, revision=place.commit, streaming=True
            )
        ),
    )
    while (example := _ask(source, lambda _: next(stream, None))) is not None:
        yield example


def split_names(config: DataConfig, split: Split) -> tuple[str, ...]:
    """The splits to read: those that the configuration names, else the one of this name."""
    named: tuple[str, ...] = getattr(config, split)
    if named:
        return named
    return (split,) if split == "train" or split in _splits(_place(config.source)) else ()


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """The data set with its commit, and the splits."""
    place = _place(config.source)
    return {
        "name": place.name,
        "part": place.part,
        "commit": place.commit,
        "splits": {split: split_names(config, split) for split in SPLITS},
    }


def text_bytes(config: DataConfig) -> int:
    """The size of a stream is not known before its end; it is taken to be large."""
    return 1 << 40


@functools.lru_cache(maxsize=8)
def _place(source: str) -> Place:
    """The data set that a source names, its revision resolved once for all that is read of it."""
    found = _NAME.fullmatch(source.removeprefix("hf:"))
    if found is None:
        raise ValueError(
            f"data.source is {source!r}; wanted hf:USER/NAME, hf:USER/NAME:CONFIG or either with "
            "@REVISION"
        )

    def commit(_: Any) -> str:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(found["name"], revision=found["revision"]).sha or ""

    return Place(found["name"], found["part"], _ask(source, commit))


@functools.lru_cache(maxsize=8)
def _splits(place: Place) -> tuple[str, ...]:
    """The names of its splits.

    Raises:
      ValueError: the data set has several configurations and none is named.
    """
    return _ask(
        f"hf:{place.name}",
        lambda datasets: tuple(
            datasets.get_dataset_split_names(place.name, place.part, revision=place.commit)
        ),
    )


def _ask(source: str, request: Callable[[Any], T]) -> T:
    """What a request gives, called with the package `datasets`; its errors are one line."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source} needs the package datasets; pip install 'nvib-jax[datasets]' has it"
        ) from error
    try:
        return request(datasets)
    except ValueError as error:  # such as a configuration that is not named
        raise ValueError(f"{source}: {_line(error)}") from error
    except Exception as error:  # whatever the client and the network below it may raise
        raise FileNotFoundError(f"{source} cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
