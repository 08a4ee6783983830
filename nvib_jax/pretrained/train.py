"""Training of a model's weights on texts, or on texts and their targets, by maximum likelihood.

It makes the small models that the out-of-domain experiments regularise, and trains classifiers. Any
downloaded model can be trained further by it, if it fits one device; several devices share each
batch. Its loop, `fit`, is that of fine-tuning with bottlenecks too (`finetune.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nvib_jax.fields import check_fields
from nvib_jax.files import draft_of
from nvib_jax.models.params import Params, digest_of, merge
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.batches import Batch, padded
from nvib_jax.pretrained.model import PretrainedModel
from nvib_jax.pretrained.passes import cross_entropy
from nvib_jax.progress import track

UNFINISHED = "unfinished.safetensors"  # the state of a run that was interrupted
LEARNED = "nvib/"  # what names of bottlenecks' maps begin with
# (trained, batch, a key, the step) -> (what is minimised, figures to report)
Loss = Callable[[Params, Batch, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """An optimiser's run."""

    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 64
    """Texts in a batch."""
    learning_rate: float = 1e-3
    """Peak learning rate, after a warm-up of a tenth and before a cosine decay to 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Most norm of the gradient."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over the vocabulary."""
    seed: int = 0
    """Of dropout and of the order of the texts."""
    devices: int = 1
    """Devices of this process that share each batch, the weights whole on each; 0 takes all."""

    def __post_init__(self) -> None:
        check_fields(self, "training")
        for name, least in (("steps", 1), ("batch_size", 1), ("devices", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"training.{name} is {value}; wanted at least {least}")


def train(
    model: PretrainedModel,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    config: TrainingConfig | None = None,
    *,
    folder: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> PretrainedModel:
    """The model with its weights trained further on these texts.

    Args:
      model: that writes, or a classifier; it is not changed.
      texts: to continue, or to read where there are targets.
      targets: to write, for models of two stacks; or the labels, for classifiers.
      config: None is `TrainingConfig()`.
      folder: where the state is kept ten times on the way, from which an interrupted run goes on.
      say: called with a line of text, ten times.

    Raises:
      ValueError: a model that fills gaps, or texts that do not fit.
    """
    about, c = model.architecture, config or TrainingConfig()
    rows = rows_to_learn(model, texts, targets)

    def loss(params: Params, batch: Batch, key: jax.Array, index: jax.Array) -> Any:
        view = View(model.readings, key=key, rate=about.dropout)
        nats = cross_entropy(merge(model.graph, params), batch, view, c.label_smoothing)
        return nats, {"nats": nats}

    return model.with_params(fit(model, model.params, loss, rows, c, folder=folder, say=say))


def rows_to_learn(model: PretrainedModel, texts: Sequence[str], targets: Any) -> tuple[Any, Any]:
    """The ids of texts and targets that a model can be trained on.

    Raises:
      ValueError: a model that fills gaps, or texts that do not fit.
    """
    about = model.architecture
    if about.kind == "masked":
        raise ValueError(
            f"a {about.family} model fills gaps; training it is not implemented but as a "
            "classifier, which `load` with labels makes of it"
        )
    if about.kind == "classifier" and targets is None:
        raise ValueError("a classifier needs targets, the label of each text")
    return model.rows(texts, targets)


def fit(
    model: PretrainedModel,
    trained: Params,
    loss: Loss,
    rows: tuple[Any, Any],
    config: TrainingConfig,
    *,
    folder: str | Path | None,
    say: Callable[[str], None] | None,
) -> Params:
    """Minimise a loss.

    Args:
      model: whose texts they are.
      trained: where it starts.
      loss: of a batch; its figures are reported.
      rows: ids of the texts and of their targets.
      config: the optimiser's run.
      folder: where the state is kept on the way; None is nowhere.
      say: called with a line of text, ten times.

    Returns:
      `trained` after the last step.

    Raises:
      ValueError: more devices than there are, or a batch that they cannot share; a kept state of
        another run.
    """
    c, report = config, say or (lambda line: None)
    divided, whole = _sharings(c)
    warmup = min(max(c.steps // 10, 1), c.steps - 1)  # a single step has none
    schedule = optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, warmup, c.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(c.clip),
        optax.adamw(schedule, b2=0.98, weight_decay=c.weight_decay, mask=_decayed),
    )

    @jax.jit
    def step(trained: Params, state: Any, index: jax.Array, batch: Batch) -> Any:
        key = jax.random.fold_in(jax.random.key(c.seed), index)
        (_, figures), grads = jax.value_and_grad(
            lambda trained: loss(trained, batch, key, index), has_aux=True
        )(trained)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
            updates, state = optimizer.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, figures

    state, seen = optimizer.init(trained), []
    kept = None if folder is None else _Kept(Path(folder), _about(model, trained, c, rows))
    done, (trained, state) = (0, (trained, state)) if kept is None else kept.read((trained, state))
    if done:
        report(f"goes on after step {done:,}")
    trained, state = jax.device_put((trained, state), whole)
    stream, every = _endless(rows, c, model.architecture.pad), max(c.steps // 10, 1)
    for index in track(range(c.steps), "training", total=c.steps, unit="steps"):
        batch = next(stream)
        if index < done:
            continue
        trained, state, figures = step(
            trained, state, np.int32(index), jax.device_put(batch(), divided)
        )
        seen.append(figures)
        if (index + 1) % every == 0:
            means = jax.tree.map(lambda *values: float(np.mean(values)), *jax.device_get(seen))
            said = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
            report(f"step {index + 1:,}: {said}")
            seen.clear()
            if kept is not None and index + 1 < c.steps:
                kept.write(index + 1, (trained, state))
    if kept is not None:
        kept.path.unlink(missing_ok=True)
    # As they came: on one device, and free to go to another.
    return trained if whole is None else jax.tree.map(jnp.asarray, jax.device_get(trained))


def _sharings(config: TrainingConfig) -> tuple[NamedSharding | None, NamedSharding | None]:
    """How batches and how weights lie on the devices; None leaves them on the one they are on."""
    there, c = jax.local_devices(), config
    count = c.devices or len(there)
    if count > len(there):
        raise ValueError(f"training.devices is {count}; there are {len(there)}")
    if c.batch_size % count:
        raise ValueError(
            f"training.batch_size is {c.batch_size}; wanted a multiple of the {count} devices"
        )
    if count == 1:
        return None, None
    mesh = Mesh(np.array(there[:count]), ("data",))
    return NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


def _decayed(params: Params) -> dict[str, bool]:
    """Weight decay is for matrices; vectors are biases and norms.

    Bottlenecks are not decayed: that would pull their means to 0 and not to the identity.
    """
    return {n: p.ndim > 1 and not n.startswith(LEARNED) for n, p in params.items()}


def _endless(
    rows: tuple[Any, Any], config: TrainingConfig, pad: int
) -> Iterator[Callable[[], Batch]]:
    """Batches of epochs in random order, all of one shape, so that the step compiles once.

    Each is a function that makes it, because a run that goes on passes over those that it has seen.
    """
    texts, targets = rows
    rng = np.random.default_rng(config.seed)
    widths = [max(map(len, part)) for part in rows if part is not None]
    left: list[int] = []
    while True:
        while len(left) < config.batch_size:
            left += rng.permutation(len(texts)).tolist()
        chosen, left = left[: config.batch_size], left[config.batch_size :]

        def batch(chosen: list[int] = chosen) -> Batch:
            parts = [texts] if targets is None else [texts, targets]
            arrays = [
                padded([part[i] for i in chosen], width, len(chosen), pad)
                for part, width in zip(parts, widths, strict=True)
            ]
            return Batch(*(array for pair in arrays for array in pair))

        yield batch


def _about(
    model: PretrainedModel, start: Params, config: TrainingConfig, rows: tuple[Any, Any]
) -> str:
    """Digest of all that a run depends on."""
    read = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(model.readings))}
    given = [model.digest, digest_of(start), digest_of(read)]
    settings = asdict(config)
    del settings["devices"]  # another number of them goes on with the same run
    content = json.dumps([given, settings, rows])
    return hashlib.sha256(content.encode()).hexdigest()


class _Kept:
    """The state of a run on its way, in a file of its folder."""

    def __init__(self, folder: Path, about: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.about = folder / UNFINISHED, about

    def write(self, step: int, state: Any) -> None:
        """Keep the state after so many steps."""
        from safetensors.numpy import save_file

        leaves = jax.device_get(jax.tree.leaves(state))
        arrays = {str(i): np.asarray(leaf, order="C") for i, leaf in enumerate(leaves)}
        with draft_of(self.path) as draft:
            save_file(arrays, draft, metadata={"step": str(step), "about": self.about})

    def read(self, start: Any) -> tuple[int, Any]:
        """(steps that were made, the state after them); (0, start) if there are none.

        Raises:
          ValueError: the file is of other texts, another model or other settings, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return 0, start
        try:
            with safe_open(self.path, "np") as file:
                about = file.metadata()
                leaves = [jnp.asarray(file.get_tensor(str(i))) for i in range(len(file.keys()))]
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}); delete it") from error
        if about["about"] != self.about:
            raise ValueError(
                f"{self.path} is of an unfinished run with other texts, weights or settings; give "
                "those again, or delete it"
            )
        return int(about["step"]), jax.tree.unflatten(jax.tree.structure(start), leaves)
