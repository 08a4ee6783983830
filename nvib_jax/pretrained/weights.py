"""A pretrained model's weights and config: safetensors in and out, tensor by tensor."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.files import draft_of, write_whole
from nvib_jax.models.params import Params, split
from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.config_json import architecture, labels_of, with_labels
from nvib_jax.pretrained.files import CONFIG, WEIGHTS, Files, few
from nvib_jax.pretrained.names import Names, ignored, label_head, prefix, sources, tensors
from nvib_jax.pretrained.transformer import Transformer

DTYPES = ("float32", "bfloat16", "float16")


def described(
    files: Files, labels: Sequence[str] | None = None
) -> tuple[Architecture, dict[str, Any]]:
    """What a model is, and the content of its config.json; no tensors are read, but their names.

    Args:
      files: from `find`.
      labels: of a classifier that the files are no part of yet.

    Raises:
      ValueError: a family, a field or a head that is not implemented, or files of a classifier of
        other labels.
    """
    about, there = architecture(files.config), _where(files.weights)
    if _is_classifier(about, there):
        own = labels_of(files.config)
        if labels is not None and tuple(labels) != own:
            raise ValueError(
                f"{files.model} tells the labels {few(list(own))} apart; wanted these, or a model "
                "without a head for labels"
            )
        return replace(about, head="labels", labels=own, output_bias=False), files.config
    if labels is not None:
        config = with_labels(files.config, labels)
        return replace(about, head="labels", labels=tuple(labels), output_bias=False), config
    return _with_head(about, files.config, there), files.config


def _is_classifier(about: Architecture, there: Mapping[str, Any]) -> bool:
    """Whether the tensors are a classifier's, which are more than a classifier of tokens has."""
    head = label_head(about)
    return bool(head) and {at.name for at in head.values()} <= set(there)


def read(
    files: Files,
    *,
    dtype: str = "float32",
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Architecture, nnx.GraphDef, Params]:
    """The architecture of a model, the module's structure, and its parameters.

    Tensors are read one at a time, so that there is never much more than the model in memory.

    Args:
      files: from `find`.
      dtype: of the parameters, one of `DTYPES`, whatever the file has.
      labels: of a classifier; a head that the files do not have is drawn.
      seed: of that.

    Raises:
      ValueError: a family or field that is not implemented, or tensors that are missing, surplus or
        of another shape.
      FileNotFoundError: no weights in safetensors.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; wanted one of {', '.join(DTYPES)}")
    where = _where(files.weights)
    about, _ = described(files, labels)
    names = _as_in(where, sources(about), about)
    fresh = {}
    if labels is not None:
        fresh = {own: at for own, at in names.items() if own in label_head(about)}
        fresh = {own: at for own, at in fresh.items() if at.name not in where}
    shapes: dict[str, tuple[int, ...]] = {}

    def build() -> nnx.GraphDef:
        graph, params = split(Transformer(about, rngs=nnx.Rngs(0)))
        shapes.update({name: param.shape for name, param in params.items()})
        return graph

    graph = _shapes_only(build)
    # The head of a language model is left where it is when a classifier is made of its body.
    spare = {} if labels is None else sources(architecture(files.config))
    wanted = {own: at for own, at in names.items() if own not in fresh}
    _check_names(files, set(where), wanted, spare)
    wrong: list[str] = []
    params: Params = {}
    for own, source in wanted.items():
        found = source.take(where[source.name]())
        if found.shape != shapes[own]:
            wrong.append(f"{source.name} gives {found.shape}, wanted {shapes[own]}")
            continue
        params[own] = jnp.asarray(np.ascontiguousarray(found), dtype)
        jax.block_until_ready(params[own])
    if wrong:
        raise ValueError(
            f"{files.folder}: {len(wrong)} tensors have another shape: {few(wrong, '; ')}"
        )
    draw = nnx.initializers.normal(0.02, dtype)
    for i, own in enumerate(sorted(fresh)):
        shape = shapes[own]
        key = jax.random.fold_in(jax.random.key(seed), i)
        params[own] = draw(key, shape) if len(shape) > 1 else jnp.zeros(shape, dtype)
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
    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with draft_of(folder / WEIGHTS) as draft:
        save_file(dict(tensors(sources(about), params)), draft, metadata={"format": "pt"})
    more = {CONFIG: (json.dumps(dict(config), indent=2) + "\n").encode(), **(others or {})}
    for name, content in more.items():
        write_whole(folder / name, content)
    return [folder / WEIGHTS, *(folder / name for name in more)]


def check_new(folder: Path) -> None:
    """Raise FileExistsError if the folder holds a model."""
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise FileExistsError(f"{folder} holds a model; name another folder")


def _shapes_only(build: Callable[[], nnx.GraphDef]) -> nnx.GraphDef:
    """What `build` returns, without an array being made."""
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
    return {own: replace(at, name=at.name.removeprefix(body)) for own, at in names.items()}


def _check_names(files: Files, there: set[str], names: Names, spare: Names) -> None:
    wanted = {source.name for source in names.values()}
    known = wanted | {source.name for source in spare.values()}
    missing = sorted(wanted - there)
    surplus = sorted(name for name in there - known if not ignored(name))
    said = [
        f"{len(found)} tensors {what}: {few(found)}"
        for what, found in (("are missing", missing), ("are surplus", surplus))
        if found
    ]
    if said:
        raise ValueError(f"{files.folder}: {'; '.join(said)}")
