"""`nvib finetune`: a pretrained model trained further, with a bottleneck in every attention."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nvib_jax.cli.options import warn
from nvib_jax.cli.pretrained import Flat, Model, Source, open_model, read_pairs
from nvib_jax.files import write_whole
from nvib_jax.pretrained.finetune import FinetuneConfig, finetune
from nvib_jax.pretrained.train import TrainingConfig, train
from nvib_jax.pretrained.weights import check_new


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train a pretrained model further, with a bottleneck in every attention or without.

    An interrupted command goes on where it was, if it is given again.
    """

    model: Model
    """Folder in Hugging Face's format, or a name of the Hub."""
    file: Path
    """Texts to train on: one a line, with a tab and the target, or the label, where the model has
    targets; or .jsonl with "source" and "target"."""
    dev: Path
    """Texts to measure on, before and after."""
    out: Path
    """Folder for what was trained, and for the figures; it is a MODEL for the other commands."""
    classify: bool = False
    """Whether targets are labels, for which the model gets a head; a classifier has one already."""
    bottlenecks: bool = True
    """Whether attentions get bottlenecks. Without them all weights are trained."""
    training: FinetuneConfig = field(default_factory=FinetuneConfig)
    source: Flat = field(default_factory=Source)


def run(options: Finetune) -> None:
    """Train, print the figures of both models, and write the new one."""
    check_new(options.out)
    plain = None if options.bottlenecks else _plain(options.training)
    labels = None
    if options.classify:
        _, named = read_pairs(options.file, True)
        labels = sorted(set(named or ()))
    model = open_model(options.model, options.source, labels=labels)
    if model.architecture.kind == "masked":
        raise ValueError(
            f"a {model.architecture.family} model fills gaps; training it is not implemented but "
            "as a classifier: --classify, with a tab and a label after each text"
        )
    pairs = model.architecture.has_targets
    given, dev = (read_pairs(path, pairs) for path in (options.file, options.dev))
    if options.dev.resolve() == options.file.resolve():
        warn(
            f"nvib finetune: --file and --dev are the same file, {options.dev}: the figures are of "
            "the texts that were trained on"
        )
    before = _figures(model, dev)
    if plain is None:
        prior = model.empirical_prior(*given)
        tuned = finetune(model, prior, *given, options.training, folder=options.out, say=warn)
    else:
        tuned = train(model, *given, plain, folder=options.out, say=warn)
    rows = {"before": before, "after": _figures(tuned, dev)}
    tuned.save(options.out)
    write_whole(options.out / "figures.json", json.dumps(rows, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:<8}" + "".join(f"  {key} {value:.4f}" for key, value in row.items()))
    print(f"kept in {options.out}; nvib score {options.out} --file {options.dev} reads it")


def _plain(config: FinetuneConfig) -> TrainingConfig:
    """The settings of a run without bottlenecks.

    Raises:
      ValueError: one of a bottleneck is set, and would have no effect.
    """
    own, default = {f.name for f in fields(TrainingConfig)}, FinetuneConfig()
    for each in fields(FinetuneConfig):
        if each.name not in own and getattr(config, each.name) != getattr(default, each.name):
            raise ValueError(
                f"--training.{each.name.replace('_', '-')} is of bottlenecks, and has no effect "
                "without them"
            )
    return TrainingConfig(**{name: getattr(config, name) for name in own})


def _figures(model: Any, texts: tuple[list[str], list[str] | None]) -> dict[str, float]:
    scores = model.score(*texts)
    nats = float(scores.nats.sum() / scores.tokens.sum())
    return {"nats": nats, "accuracy": scores.accuracy()}
