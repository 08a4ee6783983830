"""`nvib merge`, `edit`, `paraphrase`, `drop` and `embed`: their options and what they do."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nvib_jax.cli.options import Run, Which, load, notes_as_lines
from nvib_jax.cli.text_commands import Files, Inputs, Rewriting, Texts, Writing, show, texts_of
from nvib_jax.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Merge(Rewriting):
    """Write one sentence of several: their mixtures joined, the weights divided."""

    weights: tuple[float, ...] = ()
    """How much each sentence counts; none is all alike."""


@dataclass(frozen=True, kw_only=True)
class Edit(Rewriting):
    """Give sentences more of what one set of examples has and another has not."""

    towards: Files
    """A file of examples of what is wanted, one a line. May be given several times."""
    away: Files
    """A file of examples of the opposite, one a line. May be given several times."""
    strength: float = 1.0
    """How many times the difference of the sets is added."""
    bandwidth: float | None = None
    """Distance within which examples move a vector; None moves all vectors alike."""


@dataclass(frozen=True, kw_only=True)
class Paraphrase(Writing):
    """Write sentences of draws around each sentence's latent."""

    count: int = 5
    """Draws for each sentence."""
    temperature: float = 1.0
    """Noise of the draws: 1 is the posterior's, less stays nearer to the sentence."""


@dataclass(frozen=True, kw_only=True)
class Drop(Rewriting):
    """Write a sentence again as its vectors are taken away one by one."""

    alone: bool = False
    """Take away each vector alone; otherwise those before it stay away, the weakest first."""
    figure: Path | None = None
    """Also draw which words are lost, of one sentence, to this file (png, svg, pdf)."""


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write the vector of each sentence to a file for numpy."""

    run: Run
    """Folder of a run."""
    text: Texts = ()
    """Sentences; none here and none in --file means standard input."""
    file: Files = ()
    """A file with one sentence a line; - is standard input. May be given several times."""
    out: Path
    """The file: NAME.npz with "texts" and "vectors", or NAME.npy with the vectors alone."""
    how: Literal["mean", "whitened"] = "mean"
    """The mean of a sentence's vectors, as it is or whitened."""
    like: Files = ()
    """Sentences that the whitening is learned from, one a line; none means the sentences given."""
    checkpoint: Which = "best"
    """Which checkpoint."""


def merge(options: Merge) -> None:
    """Print what the sentences are merged to."""
    texts = texts_of(options.text, options.inputs)
    model = load(options.run, options.checkpoint)
    with notes_as_lines():
        output = model.merge(
            texts,
            options.weights or None,
            form=options.form,
            decoding=options.decoding,
            seed=options.seed,
        )
    show(output, {"texts": texts, "merged": output}, options.inputs.jsonl)


def edit(options: Edit) -> None:
    """Print each sentence as edited, in order."""
    texts = texts_of(options.text, options.inputs)
    sets = [texts_of((), Inputs(file=files)) for files in (options.towards, options.away)]
    model = load(options.run, options.checkpoint)
    with notes_as_lines():
        outputs = model.edit(
            texts,
            towards=sets[0],
            away=sets[1],
            strength=options.strength,
            bandwidth=options.bandwidth,
            form=options.form,
            decoding=options.decoding,
            seed=options.seed,
        )
    for text, output in zip(texts, outputs, strict=True):
        show(output, {"text": text, "edited": output}, options.inputs.jsonl)


def paraphrase(options: Paraphrase) -> None:
    """Print the draws of each sentence, in order."""
    texts = texts_of(options.text, options.inputs)
    model = load(options.run, options.checkpoint)
    for text in texts:
        with notes_as_lines():
            outputs = model.paraphrase(
                text,
                options.count,
                temperature=options.temperature,
                decoding=options.decoding,
                seed=options.seed,
            )
        for output in outputs:
            show(output, {"text": text, "paraphrase": output}, options.inputs.jsonl)


def drop(options: Drop) -> None:
    """Print what is written of each sentence, a line for each vector that is taken away."""
    texts = texts_of(options.text, options.inputs)
    if options.figure is not None and len(texts) > 1:
        raise ValueError(f"there are {len(texts)} sentences; wanted one for --figure")
    model = load(options.run, options.checkpoint)
    for text in texts:
        with notes_as_lines():
            steps = model.drop(
                text,
                alone=options.alone,
                form=options.form,
                decoding=options.decoding,
                seed=options.seed,
            )
        width = max(len(step.vector) for step in steps) + 1
        for step in steps:
            sign = "-" if step.vector else " "
            record = {"text": text, "dropped": step.vector, "written": step.text}
            show(f"{sign}{step.vector:{width}} {step.text}", record, options.inputs.jsonl)
    if options.figure is not None:
        from nvib_jax.plots import words_lost

        names = [step.vector for step in steps[1:]]
        picture = words_lost(steps[0].text, names, [step.text for step in steps[1:]])
        drawn = io.BytesIO()
        picture.savefig(drawn, format=options.figure.suffix.lstrip(".") or "png")
        write_whole(options.figure, drawn.getvalue())


def embed(options: Embed) -> None:
    """Write the vectors, and print the file's name."""
    if options.out.suffix not in (".npz", ".npy"):
        raise ValueError(f"out is {options.out}; wanted a name that ends in .npz or .npy")
    texts = texts_of(options.text, Inputs(file=options.file))
    like = texts_of((), Inputs(file=options.like)) if options.like else None
    model = load(options.run, options.checkpoint)
    with notes_as_lines():
        vectors = model.embed(texts, how=options.how, like=like)
    content = io.BytesIO()
    if options.out.suffix == ".npz":
        np.savez(content, texts=np.array(texts), vectors=vectors)
    else:
        np.save(content, vectors)
    write_whole(options.out, content.getvalue())
    print(options.out)
