"""`nvib fit-prior`, `evaluate`, `sweep`, `report` and `metrics`: options, and what they do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nvib_jax.cli.options import Run, Which, load, warn
from nvib_jax.evaluation.protocol import EvaluationConfig
from nvib_jax.priors.config import PriorConfig

Runs = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ...")]]


@dataclass(frozen=True, kw_only=True)
class FitPrior:
    """Fit a prior to the latents of a run's training texts, for `nvib sample --prior learned`.

    The model stays as it is. `nvib evaluate` measures the prior in RUN/prior too."""

    run: Run
    """Folder of a run."""
    out: Path | None = None
    """Folder to write to; None is RUN/prior."""
    labelled: Path | None = None
    """A file with a label, a tab and a sentence a line, to fit to instead of the training texts:
    `nvib sample --label LABEL` then asks for one."""
    checkpoint: Which = "best"
    """Which checkpoint."""
    options: Annotated[PriorConfig, tyro.conf.arg(name="")] = field(default_factory=PriorConfig)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure runs on text they have not seen; writes RUN/evaluation.json and prints a table."""

    run: Runs
    """Folders of runs."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint."""
    options: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationConfig
    )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train and evaluate every run of a file, a process each, and print a table.

    Started again, it goes on where it stopped."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SWEEP.py")]]
    """Defines sweep() -> dict of a run's name to its Config."""
    out: Path | None = None
    """Folder of the runs; None is runs/ and the file's name."""
    jobs: int = 1
    """Runs at a time, the cores shared out among them; 1 where there is an accelerator."""
    only: tuple[str, ...] = ()
    """Runs whose name has one of these in it; none means all."""
    options: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationConfig
    )
    """Of the evaluation."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML page of runs, with everything in it, that needs no network."""

    run: Runs
    """Folders of runs."""
    out: Path = Path("report.html")
    """The page."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Print what runs measured while they trained, as comma-separated values, a line a record."""

    run: Runs
    """Folders of runs."""
    split: Literal["train", "validation"] | None = None
    """Only the records of this split; None is all."""


def fit_prior(options: FitPrior) -> None:
    """Fit, write, and print the files."""
    from nvib_jax.data import prepare
    from nvib_jax.data.config import relocated
    from nvib_jax.priors.fit import fit_prior
    from nvib_jax.priors.prior import PRIOR
    from nvib_jax.text.as_typed import cleaned

    model, labels = load(options.run, options.checkpoint), None
    if options.labelled is None:
        texts = prepare(relocated(model.config.data), progress=warn).sentences("train")
    else:
        pairs = labelled_lines(options.labelled)
        texts, labels = (
            cleaned(model, [text for _, text in pairs]),
            {"label": [n for n, _ in pairs]},
        )
    prior = fit_prior(model, texts, options.options, labels=labels, progress=warn)
    for file in prior.save(options.out or Path(options.run) / PRIOR):
        print(file)


def labelled_lines(path: Path) -> list[tuple[str, str]]:
    """The (label, sentence) of each line of a file that is not blank.

    Raises:
      ValueError: a line without a tab, a label or a sentence.
    """
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        label, _, text = (part.strip() for part in line.partition("\t"))
        if line.strip() and not (label and text):
            raise ValueError(f"{path}:{number} is {line[:60]!r}; wanted label, tab, sentence")
        if line.strip():
            pairs.append((label, text))
    return pairs


def evaluate(options: Evaluate) -> None:
    """Evaluate the runs one after the other, and print their table."""
    from nvib_jax.evaluation.protocol import evaluate_run
    from nvib_jax.evaluation.table import legend, read_runs, score_table

    if not options.run:
        raise ValueError("no run was given; wanted folders, as in: nvib evaluate runs/quickstart")
    for run in options.run:
        evaluate_run(run, options.options, checkpoint=options.checkpoint)
    runs = read_runs(options.run)
    print(f"{score_table(runs)}\n\n{legend(runs)}")


def sweep(options: Sweep) -> None:
    """Run what is not done yet, save the scores of all runs, and print their table."""
    from nvib_jax.evaluation.protocol import RESULT
    from nvib_jax.evaluation.table import legend, read_runs, save_scores, score_table
    from nvib_jax.sweep import load_sweep, run_sweep

    runs = chosen = load_sweep(options.file)
    if options.only:
        chosen = {name: c for name, c in runs.items() if any(part in name for part in options.only)}
    if not chosen:
        raise ValueError(f"no run of {options.file} has any of {options.only} in its name")
    out = options.out or Path("runs") / options.file.stem
    run_sweep(chosen, out, jobs=options.jobs, evaluation=options.options)
    # Runs that an earlier call chose are there too.
    done = read_runs([out / name for name in runs if (out / name / RESULT).is_file()])
    save_scores(done, out / "scores.json")
    print(f"{score_table(done)}\n\n{legend(done)}\n\nall scores in {out / 'scores.json'}")


def report(options: Report) -> None:
    """Write the report's page and print its path."""
    from nvib_jax.evaluation.report import write_report

    if not options.run:
        raise ValueError("no run was given; wanted folders, as in: nvib report runs/quickstart")
    print(write_report(options.run, options.out))


def metrics(options: Metrics) -> None:
    """Print the table."""
    from nvib_jax.training.records import as_csv

    if not options.run:
        raise ValueError("no run was given; wanted folders, as in: nvib metrics runs/quickstart")
    print(as_csv(options.run, split=options.split), end="")
