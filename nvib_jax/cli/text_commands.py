"""`nvib reconstruct`, `sample`, `interpolate` and `play`: their options and what they do."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nvib_jax.checkpoint.exported import WEIGHTS
from nvib_jax.checkpoint.retention import FOLDER
from nvib_jax.cli.options import Run, Which, load, notes_as_lines
from nvib_jax.generate import DecodingConfig
from nvib_jax.priors import LearnedPrior, Sampling
from nvib_jax.priors.prior import PRIOR

Form = Literal["exact", "published", "simplified", "expected_logit", "drawn"]
Texts = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")]]
Files = tyro.conf.UseAppendAction[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH")]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where sentences come from and where results go."""

    file: Files = ()
    """A file with one sentence a line, beside those given as arguments; - is standard input.
    May be given several times."""
    jsonl: bool = False
    """Write one JSON object a line."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Of every command that reads sentences and writes some."""

    run: Run
    """Folder of a run."""
    text: Texts = ()
    """Sentences; none here and none in --file means standard input."""
    inputs: Annotated[Inputs, tyro.conf.arg(name="")] = field(default_factory=Inputs)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    checkpoint: Which = "best"
    """Which checkpoint."""
    seed: int = 0
    """Seed of draws."""


@dataclass(frozen=True, kw_only=True)
class Rewriting(Writing):
    """Of those that write what they have read, in a form."""

    form: Form | None = None
    """How posteriors are read; None is what the config says."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Rewriting):
    """Encode sentences and write them again."""

    keep: int | float | None = None
    """Vectors given to the decoder: 0.3 is a share of each sentence's, 3 a number; None is all."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Write sentences of mixtures drawn from the prior."""

    run: Run
    """Folder of a run."""
    count: int = 10
    """How many."""
    prior: str = "standard"
    """standard is the prior of the model's training; learned the one that `nvib fit-prior` left in
    RUN/prior; anything else names the folder of one, or the run of a causal language model, whose
    sentences are encoded."""
    label: str | None = None
    """What a learned prior that was fitted to labelled sentences shall draw."""
    sampling: Sampling = field(default_factory=Sampling)
    length: int | None = None
    """Vectors in each mixture; None draws their number as the training sentences have it."""
    decoding: DecodingConfig = field(default_factory=lambda: DecodingConfig(method="sample"))
    jsonl: bool = False
    """Write one JSON object a line."""
    checkpoint: Which = "best"
    """Which checkpoint."""
    seed: int = 0
    """Seed of mixtures and tokens."""


@dataclass(frozen=True, kw_only=True)
class Interpolate(Rewriting):
    """Write the sentences on the way from one to another."""

    text: Texts = ()
    """Two sentences, or four for two pairs, and so on; none means --file or standard input."""
    steps: int = 5
    """Points on the way, both ends included."""


@dataclass(frozen=True, kw_only=True)
class Play:
    """Type sentences and see what the model makes of them; /help there says what else it does."""

    run: Run
    """Folder of a run."""
    form: Form | None = None
    """How the posterior is read; None is what the config says."""
    checkpoint: Which = "best"
    """Which checkpoint."""
    seed: int = 0
    """Seed of draws; every line has draws of its own."""


def reconstruct(options: Reconstruct) -> None:
    """Print the reconstruction of each sentence, in order."""
    texts = texts_of(options.text, options.inputs)
    model = load(options.run, options.checkpoint)
    with notes_as_lines():
        outputs = model.reconstruct(
            texts,
            form=options.form,
            keep=options.keep,
            decoding=options.decoding,
            seed=options.seed,
        )
    for text, output in zip(texts, outputs, strict=True):
        show(output, {"text": text, "reconstruction": output}, options.inputs.jsonl)


def sample(options: Sample) -> None:
    """Print sentences written from the prior."""
    model = load(options.run, options.checkpoint)
    lengths = None if options.length is None else [options.length] * options.count
    prior: Any = None
    if options.prior != "standard":
        folder = Path(options.run) / PRIOR if options.prior == "learned" else Path(options.prior)
        is_model = (folder / FOLDER).is_dir() or (folder / WEIGHTS).is_file()
        prior = load(str(folder), "best") if is_model else LearnedPrior.load(folder)
    outputs = model.sample(
        options.count,
        lengths=lengths,
        prior=prior,
        labels=None if options.label is None else {"label": options.label},
        sampling=None if options.sampling == Sampling() else options.sampling,
        decoding=options.decoding,
        seed=options.seed,
    )
    for output in outputs:
        show(output, {"sample": output}, options.jsonl)


def interpolate(options: Interpolate) -> None:
    """Print the path between the two sentences of each pair."""
    texts = texts_of(options.text, options.inputs)
    if len(texts) % 2:
        raise ValueError(f"there are {len(texts)} sentences; wanted pairs")
    model = load(options.run, options.checkpoint)
    for a, b in zip(texts[::2], texts[1::2], strict=True):
        with notes_as_lines():
            path = model.interpolate(
                a,
                b,
                steps=options.steps,
                form=options.form,
                decoding=options.decoding,
                seed=options.seed,
            )
        for i, output in enumerate(path):
            t = i / (options.steps - 1)
            show(
                f"{t:.2f} {output}", {"a": a, "b": b, "t": t, "text": output}, options.inputs.jsonl
            )


def play(options: Play) -> None:
    """Answer lines from a prompt or a pipe."""
    from nvib_jax.cli.play import play

    play(load(options.run, options.checkpoint), form=options.form, seed=options.seed)


def texts_of(given: Sequence[str], inputs: Inputs) -> list[str]:
    """The sentences in arguments, files and standard input, without blank lines."""
    for place, text in enumerate(given, 1):
        if not text.strip():
            raise ValueError(f"sentence {place} is empty; wanted words")
    lines = list(given)
    for path in inputs.file or (() if given else (Path("-"),)):
        name = "standard input" if str(path) == "-" else str(path)
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        try:
            lines += raw.decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 at byte {error.start}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError("no sentence was given; wanted arguments, --file, or standard input")
    return texts


def show(text: str, record: dict[str, Any], jsonl: bool) -> None:
    """Print a text, or its record as a line of JSON."""
    print(json.dumps(record, ensure_ascii=False) if jsonl else text, flush=True)
