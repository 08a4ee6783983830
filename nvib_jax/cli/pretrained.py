"""`nvib inspect`, `generate`, `score` and `regularise`: pretrained models and their readings."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nvib_jax.cli.text_commands import Inputs, Texts, show, texts_of

Model = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]]
Form = Literal["expected_logit", "published", "exact", "simplified"]
DTypes = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which model."""

    revision: str | None = None
    """Branch, tag or commit of the Hub; None is its main one."""
    dtype: DTypes = "float32"
    """Type of the parameters."""
    local_only: bool = False
    """Leave the Hub alone, and use what was downloaded before."""


Flat = Annotated[Source, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Print what a model is, from its config.json; no weights are read."""

    model: Model
    """Folder in Hugging Face's format, or a name of the Hub."""
    revision: str | None = None
    """Branch, tag or commit of the Hub; None is its main one."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue texts, write their targets as generation_config.json says, or name their labels."""

    model: Model
    """Folder in Hugging Face's format, or of `nvib regularise` or `finetune`; or a name of the
    Hub."""
    text: Texts = ()
    """Texts; none here and none in --file means standard input."""
    inputs: Annotated[Inputs, tyro.conf.arg(name="")] = field(default_factory=Inputs)
    method: Literal["greedy", "sample", "beam"] | None = None
    """How tokens are chosen; None is what the model's files say."""
    num_beams: int | None = None
    """Prefixes of beam search; None is what the model's files say."""
    max_new_tokens: int | None = None
    """Most tokens to write; None is what the model's files say."""
    source: Flat = field(default_factory=Source)
    seed: int = 0
    """Seed of sampling."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Print nats a token, perplexity, accuracy, and what the prior takes of each attention."""

    model: Model
    """Folder in Hugging Face's format, or of `nvib regularise` or `finetune`; or a name of the
    Hub."""
    file: Path
    """Texts, one a line, with a tab and the target, or the label, where the model has targets; or
    .jsonl with "source" and "target"."""
    source: Flat = field(default_factory=Source)


@dataclass(frozen=True, kw_only=True)
class Regularise:
    """Measure a prior, search for taus, and print what they do to other texts."""

    model: Model
    """Folder in Hugging Face's format, or a name of the Hub."""
    prior: Path
    """Texts that the prior is measured on: one a line, with a tab and the target where the model
    has targets; or .jsonl."""
    dev: Path
    """Texts to search on."""
    test: Path
    """Texts to measure on."""
    out: Path
    """Folder for the readings, the trials and the figures; it is a MODEL for the other commands."""
    search: Literal["gradient", "random", "halving"] = "gradient"
    """How taus are searched for."""
    form: Form = "expected_logit"
    """Form of attention; all but the first depend on how the weights are written."""
    per: Literal["type", "layer"] = "type"
    """A tau for each type of attention, or for each layer."""
    objective: Literal["nats", "bleu", "chrf", "rouge1", "rouge2", "rougeL"] = "nats"
    """What taus are searched for: few nats a token, or a high score of what is written, for which
    --search is random or halving."""
    trials: int = 48
    """Passes over the texts to search on."""
    rivals: bool = True
    """Search for temperatures of output and attention too, with as many passes."""
    source: Flat = field(default_factory=Source)
    seed: int = 0
    """Seed of the search."""


def inspect(options: Inspect) -> None:
    """Print the model's description as JSON."""
    from nvib_jax.pretrained import inspect

    print(json.dumps(inspect(options.model, revision=options.revision), indent=1))


def generate(options: Generate) -> None:
    """Print what the model writes for each text."""
    import dataclasses

    texts = texts_of(options.text, options.inputs)
    model = open_model(options.model, options.source)
    given = {name: getattr(options, name) for name in ("method", "num_beams", "max_new_tokens")}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.num_beams is not None and options.method is None:
        chosen["method"] = "beam" if options.num_beams > 1 else "greedy"
    rules = dataclasses.replace(model.decoding, **chosen)
    for text, output in zip(
        texts, model.generate(texts, decoding=rules, seed=options.seed), strict=True
    ):
        show(output, {"text": text, "output": output}, options.inputs.jsonl)


def score(options: Score) -> None:
    """Print figures of the texts in a file."""
    model = open_model(options.model, options.source)
    texts, targets = read_pairs(options.file, model.architecture.has_targets)
    scores = model.score(texts, targets)
    print(f"texts            {len(texts):,}")
    print(f"tokens           {int(scores.tokens.sum()):,}")
    print(f"nats a token     {scores.nats.sum() / scores.tokens.sum():.4f}")
    print(f"perplexity       {scores.perplexity():.3f}")
    print(f"accuracy         {scores.accuracy():.4f}")
    if model.readings:
        for name, share in model.shares(texts, targets).items():
            print(f"prior's share    {name:<18} {share.mean():.4f}")


def regularise(options: Regularise) -> None:
    """Print the table of the model as it is, its reading and its rivals."""
    from nvib_jax.files import write_whole
    from nvib_jax.pretrained.evaluate import as_row, figures, table, untreated, written
    from nvib_jax.pretrained.search import chosen, search

    model = open_model(options.model, options.source)
    pairs, writes = model.architecture.has_targets, model.architecture.kind == "seq2seq"
    prior_texts, dev, test = (
        tuple(part for part in read_pairs(path, pairs) if part is not None)
        for path in (options.prior, options.dev, options.test)
    )
    if options.dev.resolve() == options.test.resolve():
        print(
            f"nvib regularise: --dev and --test are the same file, {options.dev}: the figures are "
            "of the texts that the taus were chosen on",
            file=sys.stderr,
        )
    prior = model.empirical_prior(*prior_texts)
    wanted: dict[str, dict[str, Any]] = {}
    if options.rivals:
        if options.objective == "nats":  # a temperature of the output changes no text
            wanted["temperature"] = {"kinds": ("temperature",)}
        wanted["attention temperature"] = {"kinds": ("scale",)}
    kinds = ("alpha",) if options.form == "expected_logit" else ("alpha", "sigma")
    wanted[options.form] = {"kinds": kinds, "per": options.per, "form": options.form}
    base = figures(model, prior, untreated(), *test)

    def row(name: str, found: Any) -> dict[str, Any]:
        measured = base if name == "as it is" else figures(model, prior, found, *test)
        text = written(model, prior, found, *test) if writes else {}
        return {**as_row(name, measured, base, **text), "knobs": found.knobs}

    rows = [row("as it is", untreated())]
    for name, what in wanted.items():
        found = search(
            model, prior, *dev, **what, method=options.search, trials=options.trials,
            objective=options.objective, seed=options.seed, folder=options.out,
        )  # fmt: skip
        rows.append(row(name, found))
    chosen(model, prior, found).save(options.out)
    write_whole(options.out / "figures.json", json.dumps(rows, indent=1) + "\n")
    print(table([{k: v for k, v in each.items() if k != "knobs"} for each in rows]))
    for name, value in found.knobs.items():
        print(f"{name:<24} {value:.3f}")
    print(f"kept in {options.out}; nvib score {options.out} --file {options.test} reads it")


def read_pairs(path: Path, pairs: bool) -> tuple[list[str], list[str] | None]:
    """Texts of a file, and their targets where they come in pairs.

    Args:
      path: a line a text, with a tab and its target for pairs; or .jsonl with "source" and
        "target".
      pairs: whether there should be targets.

    Raises:
      ValueError: a line that is none of these, or an empty file.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [_pair(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no texts")
    for number, row in enumerate(rows, 1):
        if (row[1] is not None) != pairs:
            wanted = "a text, a tab and its target" if pairs else "a text and no target"
            raise ValueError(f"{path}: text {number} is {row[0][:40]!r}; wanted {wanted}")
    return [row[0] for row in rows], [str(row[1]) for row in rows] if pairs else None


def _pair(path: Path, number: int, line: str) -> tuple[str, str | None]:
    if path.suffix == ".jsonl":
        try:
            record = json.loads(line)
            return str(record["source"]), record.get("target")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f'{path}, line {number}: wanted a JSON object with "source", and "target" if any'
            ) from error
    parts: Sequence[str] = line.split("\t")
    if len(parts) > 2:
        raise ValueError(f"{path}, line {number} has {len(parts) - 1} tabs; wanted one at most")
    return parts[0], parts[1] if len(parts) == 2 else None


def open_model(model: str, source: Source, *, labels: Sequence[str] | None = None) -> Any:
    """The model that the options name, made a classifier of these labels if there are any."""
    from nvib_jax.pretrained import load

    return load(
        model,
        labels=labels,
        revision=source.revision,
        dtype=source.dtype,
        local_only=source.local_only,
    )
