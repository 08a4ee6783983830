"""A `PretrainedModel` from files, or from nothing; and what files say without being loaded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from nvib_jax.models.params import digest_of, split
from nvib_jax.pretrained import files as on_disk
from nvib_jax.pretrained import readings as read_how
from nvib_jax.pretrained import weights
from nvib_jax.pretrained.config_json import architecture
from nvib_jax.pretrained.decoding import decoding_of
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.tokenizer import load_tokenizer
from nvib_jax.pretrained.transformer import Transformer
from nvib_jax.progress import to_standard_error


def load(
    model: str | Path,
    *,
    labels: Sequence[str] | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    local_only: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = to_standard_error,
) -> PretrainedModel:
    """Open a model of the Hugging Face Hub, a folder in its format, or what `save` wrote.

    Args:
      model: a folder, a name such as "facebook/bart-large-cnn", or a folder from `save`.
      labels: of a classifier (BERT, RoBERTa, BART, T5) that is to be trained; the parts of its head
        that the files do not have are drawn. A classifier's own files need none.
      revision: branch, tag or commit of the Hub.
      dtype: of the parameters.
      local_only: whether the Hub is left alone and only what was downloaded before is used.
      seed: of a head that is drawn.
      say: called with a line of text about what the files ask for and is not done here.

    Raises:
      FileNotFoundError: no such folder or model, or no weights in safetensors.
      ValueError: a family or field that is not implemented, tensors that do not fit, readings of
        other weights, or labels of a model that tells others apart.
    """
    folder, found = Path(model).expanduser(), None
    said: dict[str, Any] = {}
    if (folder / read_how.DESCRIPTION).is_file():
        found, said = read_how.open_saved(folder)
        model = folder if said["model"] == read_how.HERE else said["model"]
    files = on_disk.find(model, revision=revision, local_only=local_only)
    if files.revision is not None:
        say(f"{files.model}: revision {files.revision}")
    if found is not None and files.digest != said["digest"]:
        raise ValueError(f"{folder} holds readings of other weights than those of {files.model}")
    if found and labels is not None:
        raise ValueError(f"{folder} holds readings; wanted labels of a model without")
    about, config = weights.described(files, labels)
    about, graph, params = weights.read(files, dtype=dtype, labels=labels, seed=seed)
    decoding, strange = decoding_of(files.generation, config, about)
    if strange:
        say(f"{files.model}: generation_config.json sets {', '.join(strange)}: not done here")
    opened = PretrainedModel(
        architecture=about,
        graph=graph,
        params=params,
        tokenizer=load_tokenizer(files.folder, about),
        config=config,
        name=files.model,
        digest=files.digest,
        decoding=decoding,
        stored=True,
        generation=files.generation,
    )
    if config is not files.config:  # a head was drawn
        opened = opened.with_params(params)
    return opened.with_readings(found) if found else opened


def fresh(config: Mapping[str, Any], tokenizer: str | Path, *, seed: int = 0) -> PretrainedModel:
    """A model with random parameters, to be trained from nothing (`nvib_jax.pretrained.train`).

    Args:
      config: the content of a config.json.
      tokenizer: a folder with a tokenizer's files.
      seed: of the parameters.
    """
    about = architecture(config)
    graph, params = split(Transformer(about, rngs=nnx.Rngs(seed)))
    decoding, _ = decoding_of({}, config, about)
    return PretrainedModel(
        architecture=about,
        graph=graph,
        params=params,
        tokenizer=load_tokenizer(tokenizer, about),
        config=config,
        name=f"a new {about.family}",
        digest=digest_of(params),
        decoding=decoding,
    )


def inspect(model: str | Path, *, revision: str | None = None) -> dict[str, Any]:
    """What a model is, from its config.json and the names of its tensors; no weights are read.

    Of a folder that `save` wrote it says too which model the readings are of, and of which
    attentions.
    """
    folder, more = Path(model).expanduser(), {}
    if (folder / read_how.DESCRIPTION).is_file():
        found, said = read_how.open_saved(folder)
        more = {"readings": list(found), "form": said["form"], "readings_of": said["model"]}
        model = folder if said["model"] == read_how.HERE else said["model"]
    files = on_disk.find(model, revision=revision)
    about, _ = weights.described(files)
    return {
        "model": files.model,
        "revision": files.revision,
        **dataclasses.asdict(about),
        "kind": about.kind,
        "attentions": list(about.attentions),
        "weights": [file.name for file in files.weights],
        "bytes": sum(file.stat().st_size for file in files.weights),
        "generation": files.generation,
        **more,
    }
