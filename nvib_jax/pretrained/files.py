"""Which files a pretrained model has: in a folder, or downloaded from the Hugging Face Hub.

Nothing is read that can run code: weights are safetensors only (`weights.py`), the rest is JSON and
the tokenizer's tables.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nvib_jax import hub

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "source.spm",
    "target.spm",
)
# All that is ever downloaded.
WANTED = (CONFIG, GENERATION, INDEX, "*.safetensors", *TOKENIZER_FILES)
CONVERTER = "SFconvertbot"  # the Hub's account that offers safetensors of what others published


@dataclass(frozen=True)
class Files:
    """The files of a model.

    Attributes:
      folder: where they are.
      model: what was asked for.
      revision: of the Hub, or None for a folder.
    """

    folder: Path
    model: str
    revision: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return _json(self.folder / CONFIG)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The content of generation_config.json; {} if there is none."""
        file = self.folder / GENERATION
        return _json(file) if file.is_file() else {}

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """The files of the weights, sorted by name.

        Raises:
          FileNotFoundError: none in safetensors, or a part of them is missing.
        """
        if (self.folder / WEIGHTS).is_file():
            return (self.folder / WEIGHTS,)
        if (self.folder / INDEX).is_file():
            parts = sorted(set(_json(self.folder / INDEX)["weight_map"].values()))
            missing = [part for part in parts if not (self.folder / part).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{self.folder} has not {few(missing)}, which its {INDEX} names"
                )
            return tuple(self.folder / part for part in parts)
        there = sorted(file.name for file in self.folder.iterdir())
        raise FileNotFoundError(
            f"{self.folder} has no {WEIGHTS} but {few(there)}; other files of weights can run "
            "code and are not opened: load the model with transformers and call its "
            "save_pretrained, which writes safetensors"
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of config and weights, in hexadecimal digits."""
        digest = hashlib.sha256()
        for file in (self.folder / CONFIG, *self.weights):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def find(model: str | Path, *, revision: str | None = None, local_only: bool = False) -> Files:
    """The files of a folder, or of a model of the Hub, downloaded where they are not yet.

    Of the Hub's files only `WANTED` are taken. If the model was published without safetensors, they
    are taken from the newest pull request of `CONVERTER`, and of nobody else.

    Args:
      model: a folder, or a name such as "facebook/bart-large-cnn".
      revision: branch, tag or commit of the Hub; None is its main one.
      local_only: whether to use only what was downloaded before.

    Raises:
      FileNotFoundError: no such folder and no such model; says if the Hub could not be reached.
      ImportError: huggingface_hub is not installed.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(
                f"{folder} has no {CONFIG}; wanted a folder in Hugging Face's format"
            )
        return Files(folder, str(model))
    if str(model).startswith((".", "/", "~")) or str(model).count("/") > 1:
        raise FileNotFoundError(
            f"{model} is no folder, and cannot be the name of a model of the Hub"
        )
    return _download(str(model), revision, local_only)


def _download(model: str, revision: str | None, local_only: bool) -> Files:
    def fetch(revision: str | None) -> Files:
        folder, found = hub.download(model, WANTED, revision=revision, local_only=local_only)
        return Files(folder, model, found)

    found = fetch(revision)
    if revision is None and not _has_weights(found.folder) and not local_only:
        converted = hub.ask(model, lambda: _converted(model))
        found = fetch(converted) if converted else found
    return found


def _converted(model: str) -> str | None:
    """The revision of the newest pull request of `CONVERTER`, or None."""
    from huggingface_hub import get_repo_discussions

    offers = [
        discussion
        for discussion in get_repo_discussions(model, author=CONVERTER)
        if discussion.is_pull_request and discussion.status != "closed"
    ]
    newest = max(offers, key=lambda offer: offer.num, default=None)
    return f"refs/pr/{newest.num}" if newest else None


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def few(names: list[str], between: str = ", ") -> str:
    """The first three of a list, and that there are more."""
    return between.join(names[:3]) + (f"{between}..." if len(names) > 3 else "")


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {type(content).__name__}; wanted a JSON object")
    return content
