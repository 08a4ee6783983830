"""`nvib evaluate`, `sweep`, `report` and `metrics`: their options, and the functions they call."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nvib_jax.evaluation.protocol import EvaluationConfig

Runs = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN ...")]]


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
    from nvib_jax.evaluation.table import legend, read_runs, save_scores, score_table
    from nvib_jax.sweep import load_sweep, run_sweep

    runs = load_sweep(options.file)
    if options.only:
        runs = {name: c for name, c in runs.items() if any(part in name for part in options.only)}
    if not runs:
        raise ValueError(f"no run of {options.file} has any of {options.only} in its name")
    out = options.out or Path("runs") / options.file.stem
    done = read_runs(run_sweep(runs, out, jobs=options.jobs, evaluation=options.options))
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
