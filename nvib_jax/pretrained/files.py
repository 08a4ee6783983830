"""A pretrained model's files: a folder or a model of the Hugging Face Hub; safetensors in and out.

Nothing is read that can run code: weights are safetensors only, the rest is JSON and the
tokenizer's tables.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax import hub
from nvib_jax.files import draft_of, write_whole
from nvib_jax.models.params import Params, split
from nvib_jax.pretrained.architecture import Architecture, architecture
from nvib_jax.pretrained.names import Names, Source, ignored, prefix, sources, tensors
from nvib_jax.pretrained.transformer import Transformer

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
DTYPES = ("float32", "bfloat16", "float16")


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
                    f"{self.folder} has not {_few(missing)}, which its {INDEX} names"
                )
            return tuple(self.folder / part for part in parts)
        there = sorted(file.name for file in self.folder.iterdir())
        raise FileNotFoundError(
            f"{self.folder} has no {WEIGHTS} but {_few(there)}; other files of weights can run "
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


def read(files: Files, *, dtype: str = "float32") -> tuple[Architecture, nnx.GraphDef, Params]:
    """The architecture of a model, the module's structure, and its parameters.

    Tensors are read one at a time, so that there is never much more than the model in memory.

    Args:
      files: from `find`.
      dtype: of the parameters, one of `DTYPES`, whatever the file has.

    Raises:
      ValueError: a family or field that is not implemented, or tensors that are missing, surplus or
        of another shape.
      FileNotFoundError: no weights in safetensors.
    """
    import jax

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; wanted one of {', '.join(DTYPES)}")
    where = _where(files.weights)
    about = _with_head(architecture(files.config), files.config, where)
    names = _as_in(where, sources(about), about)
    shapes: dict[str, tuple[int, ...]] = {}

    def build() -> nnx.GraphDef:
        graph, params = split(Transformer(about, rngs=nnx.Rngs(0)))
        shapes.update({name: param.shape for name, param in params.items()})
        return graph

    graph = _shapes_only(build)
    _check_names(files, set(where), names)
    wrong: list[str] = []
    params: Params = {}
    for own, source in names.items():
        found = source.take(where[source.name]())
        if found.shape != shapes[own]:
            wrong.append(f"{source.name} gives {found.shape}, wanted {shapes[own]}")
            continue
        params[own] = jnp.asarray(np.ascontiguousarray(found), dtype)
        jax.block_until_ready(params[own])
    if wrong:
        raise ValueError(
            f"{files.folder}: {len(wrong)} tensors have another shape: {_few(wrong, '; ')}"
        )
    return about, graph, params


def write(
    folder: str | Path,
    about: Architecture,
    params: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    others: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write a model so that Hugging Face's transformers opens it: safetensors and config.json.

    Args:
      folder: made if missing; it must hold no model yet.
      about: the architecture.
      params: as `read` gives them.
      config: content of config.json.
      others: more files, by name.

    Raises:
      FileExistsError: there is a model.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise FileExistsError(f"{folder} holds a model; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with draft_of(folder / WEIGHTS) as draft:
        save_file(dict(tensors(sources(about), params)), draft, metadata={"format": "pt"})
    more = {CONFIG: (json.dumps(dict(config), indent=2) + "\n").encode(), **(others or {})}
    for name, content in more.items():
        write_whole(folder / name, content)
    return [folder / WEIGHTS, *(folder / name for name in more)]


def _shapes_only(build: Callable[[], nnx.GraphDef]) -> nnx.GraphDef:
    """What `build` returns, without an array being made."""
    import jax

    kept: list[nnx.GraphDef] = []
    jax.eval_shape(lambda: kept.append(build()))
    return kept[0]


def _where(weights: Iterable[Path]) -> dict[str, Callable[[], np.ndarray]]:
    """Tensor -> a function that reads it."""
    from safetensors import SafetensorError, safe_open

    def reader(file: Path, name: str) -> Callable[[], np.ndarray]:
        def one() -> np.ndarray:
            with safe_open(file, "np") as opened:  # closed again, so that its pages are let go
                return opened.get_tensor(name)

        return one

    found = {}
    for file in weights:
        try:
            with safe_open(file, "np") as opened:
                found.update({name: reader(file, name) for name in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from error
    return found


def _with_head(
    about: Architecture, config: Mapping[str, Any], there: Mapping[str, Any]
) -> Architecture:
    """Whether the head is tied, has a matrix of its own, or is not there: the tensors say it."""
    if about.head == "transform":
        has = any(name.startswith(("cls.predictions.", "lm_head.")) for name in there)
        return about if has else replace(about, head="none", output_bias=False)
    own = "lm_head.weight" in there
    tied = config.get("tie_word_embeddings", True) and about.family != "t5"
    return replace(about, head="untied") if own and not tied else about


def _as_in(there: Iterable[str], names: Names, about: Architecture) -> Names:
    """The names without the body's prefix where the file has no head and so no prefix."""
    body = prefix(about)
    if not body or any(name.startswith(body) for name in there):
        return names
    return {
        own: Source(source.name.removeprefix(body), source.transposed, source.part, source.row)
        for own, source in names.items()
    }


def _check_names(files: Files, there: set[str], names: Names) -> None:
    wanted = {source.name for source in names.values()}
    missing = sorted(wanted - there)
    surplus = sorted(name for name in there - wanted if not ignored(name))
    said = [
        f"{len(found)} tensors {what}: {_few(found)}"
        for what, found in (("are missing", missing), ("are surplus", surplus))
        if found
    ]
    if said:
        raise ValueError(f"{files.folder}: {'; '.join(said)}")


def _few(names: list[str], between: str = ", ") -> str:
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
