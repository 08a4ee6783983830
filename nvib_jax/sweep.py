"""Trains and evaluates many runs from one file; started again, it goes on where it stopped.

A sweep file defines `sweep() -> dict[str, Config]`, with a name for each run. Run NAME is in
OUT/NAME. Its training is done when it has the last checkpoint, and the run is done when it has an
`evaluation.json`. Every run is a process of its own. `jobs` of them run at a time, each with an
equal share of the cores, and all share one cache of compiled code.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from typing import Any

from nvib_jax.checkpoint.retention import saved_steps
from nvib_jax.config import Config
from nvib_jax.evaluation.protocol import RESULT, EvaluationConfig
from nvib_jax.files import write_whole
from nvib_jax.presets import call_file, changed, from_json, to_json
from nvib_jax.progress import track

CONFIG, LOG = "sweep.json", "log.txt"


def load_sweep(path: str | Path) -> dict[str, Config]:
    """Run a sweep file's `sweep()`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file does not define `sweep() -> dict[str, Config]`, or a run's name cannot be
        a folder's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"sweep {path} does not exist")
    runs = call_file(path, "sweep")
    if not isinstance(runs, dict) or not runs:
        raise ValueError(f"sweep() of {path} gives {runs!r}; wanted a dict of name to Config")
    for name, config in runs.items():
        if not isinstance(config, Config):
            raise ValueError(f"run {name!r} of {path} is {type(config).__name__}; wanted Config")
        if Path(name).name != name:
            raise ValueError(f"run {name!r} of {path} is no name of a folder")
    return runs


def variants(
    base: Config, changes: Mapping[str, Mapping[str, Mapping[str, Any]]], seeds: Iterable[int]
) -> dict[str, Config]:
    """Variants of a config, each with every seed, as most sweeps need them.

    Args:
      base: the config that all start from.
      changes: name -> the changes that `changed` takes.
      seeds: values of `train.seed`; run NAME with seed 1 is called NAME-s1.
    """
    return {
        f"{name}-s{seed}": changed(changed(base, {"train": {"seed": seed}}), sections)
        for seed in seeds
        for name, sections in changes.items()
    }


def run_sweep(
    runs: dict[str, Config],
    out: str | Path,
    *,
    jobs: int = 1,
    evaluation: EvaluationConfig | None = None,
    progress: Callable[[str], None] = print,
) -> list[Path]:
    """Train and evaluate all runs that are not done yet.

    Args:
      runs: name -> config; `train.run_dir` is set here.
      out: folder of the runs.
      jobs: runs at a time.
      evaluation: what to measure.
      progress: called with a line of text about every run.

    Returns:
      The folders of the runs that are done, in the order of `runs`.

    Raises:
      ValueError: `jobs < 1`, or a folder holds a run of another config, or runs failed. In the last
        case all others are finished first, and the error names the logs.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; wanted at least 1")
    folders = {name: _claim(Path(out) / name, config) for name, config in runs.items()}
    cores: Queue[set[int]] = Queue()
    for share in _shares(jobs):
        cores.put(share)

    def one(name: str) -> str | None:
        mine = cores.get()
        try:
            for step in _steps(folders[name], runs[name], evaluation or EvaluationConfig()):
                since = time.monotonic()
                if not _run(step, folders[name], mine):
                    progress(f"{name}: {step[0]} failed, see {folders[name] / LOG}")
                    return f"{name} ({folders[name] / LOG})"
                progress(f"{name}: {step[0]} {time.monotonic() - since:.0f} s")
        finally:
            cores.put(mine)
        return None

    with ThreadPoolExecutor(jobs) as pool:
        ends = as_completed([pool.submit(one, name) for name in folders])
        errors = [
            error
            for end in track(ends, "sweep", total=len(folders), unit="runs", least=2)
            if (error := end.result())
        ]
    if errors:
        raise ValueError(f"{len(errors)} of {len(runs)} runs failed: {'; '.join(errors)}")
    return list(folders.values())


def _claim(folder: Path, config: Config) -> Path:
    """Make the run's folder with its config; ValueError if it holds a run of another config."""
    config = _placed(config, str(folder), config.data.cache_dir)
    file = folder / CONFIG
    if file.is_file():
        found = from_json(file.read_text(encoding="utf-8"))
        # Where the run and its data lie may change between two calls; what is trained may not.
        if _placed(found, str(folder), config.data.cache_dir) != config:
            raise ValueError(
                f"{folder} holds a run of another config; remove it or name another --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, to_json(config))
    return folder


def _placed(config: Config, run_dir: str, cache_dir: str) -> Config:
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, run_dir=run_dir),
        data=dataclasses.replace(config.data, cache_dir=cache_dir),
    )


def _steps(folder: Path, config: Config, evaluation: EvaluationConfig) -> list[list[str]]:
    """The commands that a run still needs, as arguments of `nvib`."""
    saved, steps = max(saved_steps(folder), default=0), []
    if saved < config.train.steps:
        train = ["train", str(folder / CONFIG), "--no-summary"]
        steps.append(train + (["--resume"] if saved else []))
    if steps or not (folder / RESULT).is_file():
        steps.append(["evaluate", str(folder), *as_arguments(evaluation)])
    return steps


def as_arguments(options: Any, prefix: str = "--") -> list[str]:
    """The command-line arguments that give this dataclass, without those for defaults."""
    arguments: list[str] = []
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            arguments += as_arguments(value, f"{name}.")
        elif value == field.default:
            continue
        elif isinstance(value, bool):
            arguments.append(name if value else f"--no-{name.removeprefix('--')}")
        else:
            arguments += [name, str(value)]
    return arguments


def _run(step: Sequence[str], folder: Path, cores: set[int]) -> bool:
    """Run one command in a process of its own; return whether it succeeded."""
    with (folder / LOG).open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "nvib_jax", *step]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        if cores:  # set at once, because threads that the process starts later inherit it
            os.sched_setaffinity(process.pid, cores)
        return process.wait() == 0


def _shares(jobs: int) -> list[set[int]]:
    """The cores of each job; empty sets if the system does not say or has fewer cores than jobs."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // jobs
    return [set(cores[i * each : (i + 1) * each]) for i in range(jobs)]
