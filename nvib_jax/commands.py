"""What each `nvib` command does.

Each is a frozen dataclass whose fields are its options; tyro shows them with their defaults under
`--help`. `train` and `prepare` take a preset file and the fields of `Config`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from nvib_jax import launch, studies
from nvib_jax.generate import DecodingConfig
from nvib_jax.options import parse, warn

Form = Literal["exact", "published", "simplified", "expected_logit", "drawn"]
Which = Literal["best", "last"]
Run = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
Texts = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...")]]
Files = tyro.conf.UseAppendAction[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH")]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where sentences come from and where results go."""

    file: Files = ()
    """A file with one sentence a line, beside those given as arguments; - is standard input.
    May be given several times."""
    jsonl: bool = False
    """Write one JSON object a line."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Encode sentences and write them again."""

    run: Run
    """Folder of a run."""
    text: Texts = ()
    """Sentences; none here and none in --file means standard input."""
    inputs: Annotated[Inputs, tyro.conf.arg(name="")] = field(default_factory=Inputs)
    form: Form | None = None
    """How the posterior is read; None is what the config says."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    checkpoint: Which = "best"
    """Which checkpoint."""
    seed: int = 0
    """Seed of draws."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Write sentences of mixtures drawn from the prior."""

    run: Run
    """Folder of a run."""
    count: int = 10
    """How many."""
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
class Interpolate:
    """Write the sentences on the way from one to another."""

    run: Run
    """Folder of a run."""
    text: Texts = ()
    """Two sentences, or four for two pairs, and so on; none means --file or standard input."""
    inputs: Annotated[Inputs, tyro.conf.arg(name="")] = field(default_factory=Inputs)
    steps: int = 5
    """Points on the way, both ends included."""
    form: Form | None = None
    """How the posterior is read; None is what the config says."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    checkpoint: Which = "best"
    """Which checkpoint."""
    seed: int = 0
    """Seed of draws."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model as model.safetensors and model.json, to be read here or anywhere."""

    run: Run
    """Folder of a run."""
    out: Path
    """Folder to write to; every command takes it where it takes a run."""
    checkpoint: Which = "best"
    """Which checkpoint."""


def _reconstruct(arguments: list[str]) -> None:
    options = _parse(Reconstruct, arguments)
    texts = _texts(options.text, options.inputs)
    model = _load(options.run, options.checkpoint)
    _warn_of_unknown(model, texts)
    outputs = model.reconstruct(
        texts, form=options.form, decoding=options.decoding, seed=options.seed
    )
    for text, output in zip(texts, outputs, strict=True):
        _show(output, {"text": text, "reconstruction": output}, options.inputs.jsonl)


def _sample(arguments: list[str]) -> None:
    options = _parse(Sample, arguments)
    model = _load(options.run, options.checkpoint)
    lengths = None if options.length is None else [options.length] * options.count
    outputs = model.sample(
        options.count, lengths=lengths, decoding=options.decoding, seed=options.seed
    )
    for output in outputs:
        _show(output, {"sample": output}, options.jsonl)


def _interpolate(arguments: list[str]) -> None:
    options = _parse(Interpolate, arguments)
    texts = _texts(options.text, options.inputs)
    if len(texts) % 2:
        raise ValueError(f"there are {len(texts)} sentences; wanted pairs")
    model = _load(options.run, options.checkpoint)
    _warn_of_unknown(model, texts)
    for a, b in zip(texts[::2], texts[1::2], strict=True):
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
            _show(
                f"{t:.2f} {output}", {"a": a, "b": b, "t": t, "text": output}, options.inputs.jsonl
            )


def _export(arguments: list[str]) -> None:
    options = _parse(Export, arguments)
    from nvib_jax.training.portable import export

    for file in export(_load(options.run, options.checkpoint), options.out):
        print(file)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Print versions, devices, and which implementations of attention run here and why not."""


def _doctor(arguments: list[str]) -> None:
    _parse(Doctor, arguments)
    from nvib_jax.doctor import main

    main()


def _bench(arguments: list[str]) -> None:
    from nvib_jax.bench.run import main

    main(arguments)


def _parse(command: type[T], arguments: list[str]) -> T:
    name = f"nvib {command.__name__.lower()}"
    return parse(command, arguments, prog=name, config=(tyro.conf.FlagCreatePairsOff,))


def _load(run: str, which: str) -> Any:
    from nvib_jax.text_model import TextModel

    return TextModel.load(run, which=which)


def _warn_of_unknown(model: Any, texts: Sequence[str]) -> None:
    """What a model never saw it cannot write, and writes something else."""
    unknown = model.unknown_words(texts)
    if unknown:
        count = len({word for text in texts for word in text.split()})
        warn(f"{len(unknown)} of {count} words are unknown to this model: {', '.join(unknown)}")


def _texts(given: Sequence[str], inputs: Inputs) -> list[str]:
    """Sentences of arguments, files and standard input, blank lines left out."""
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


def _show(text: str, record: dict[str, Any], jsonl: bool) -> None:
    print(json.dumps(record, ensure_ascii=False) if jsonl else text, flush=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": launch.train,
    "prepare": launch.prepare,
    "reconstruct": _reconstruct,
    "sample": _sample,
    "interpolate": _interpolate,
    "export": _export,
    "evaluate": lambda arguments: studies.evaluate(_parse(studies.Evaluate, arguments)),
    "sweep": lambda arguments: studies.sweep(_parse(studies.Sweep, arguments)),
    "report": lambda arguments: studies.report(_parse(studies.Report, arguments)),
    "bench": _bench,
    "doctor": _doctor,
}
