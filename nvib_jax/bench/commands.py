"""How long each command takes, the first time on a machine and the second.

    python -m nvib_jax.bench.commands CONFIG.py --output FILE.json
    python -m nvib_jax.bench.commands --output FILE.json    # `nvib prepare` alone

Every command runs in a process of its own, as a person runs it, with a cache that is empty at
first: the first time pays for data, compilation and the language model that scores samples; the
second finds them. Without a preset, `nvib prepare` is measured on text of three sizes, with the
memory of its largest process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nvib_jax.bench.device import Peak, machine
from nvib_jax.data import default_grammar
from nvib_jax.files import write_whole

TEXTS = ("the old dog sees a small cat", "two birds slept near the house")
MEGABYTES = (3, 30, 300)  # of text to prepare
_DEFAULT = "from nvib_jax.config import Config\n\n\ndef config():\n    return Config()\n"
_SENTENCES = 20_000  # that differ; longer text repeats them


def commands(preset: str, time_: int) -> list[list[str]]:
    """Command lines, in an order in which each finds what it needs."""
    run = f"run-{time_}"
    return [
        ["train", preset, "--train.run-dir", run],
        ["reconstruct", run, TEXTS[0]],
        ["sample", run, "--count", "5"],
        ["interpolate", run, *TEXTS],
        ["play", run],
        ["export", run, "--out", f"export-{time_}"],
        ["evaluate", run],
        ["report", run],
    ]


def measure_commands(preset: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Seconds of each command, first and second time."""
    first, second = (
        [_seconds(line, folder) for line in commands(preset, time_)] for time_ in (1, 2)
    )
    for line, a, b in zip(commands(preset, 1), first, second, strict=True):
        yield {"command": f"nvib {line[0]}", "first": a, "second": b}


def measure_prepare(folder: Path) -> Iterator[dict[str, Any]]:
    """Megabytes a second of `nvib prepare` on plain text, and the memory it needs."""
    sentences = default_grammar().sentences(0, _SENTENCES)
    block = "".join(f"{sentence}\n" for sentence in sentences)
    for size in MEGABYTES:
        file = folder / f"{size}.txt"
        with file.open("w", encoding="utf-8") as stream:
            for _ in range(max(round(size * 1e6 / len(block)), 1)):
                stream.write(block)
        source = ["--data.source", "text", "--data.layout", "lines", "--data.train", str(file)]
        seconds = _seconds(["prepare", "", *source, "--data.clean.min-tokens", "1"], folder)
        # The largest of all children so far; the sizes rise.
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        amount = file.stat().st_size
        yield {"bytes": amount, "seconds": seconds, "memory": memory}
        file.unlink()


def markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown table, with the machine that it was measured on."""
    if "commands" in report:
        lines = ["| command | first time | second time |", "| --- | --: | --: |"]
        lines += [
            f"| `{row['command']}` | {_said(row['first'])} | {_said(row['second'])} |"
            for row in report["commands"]
        ]
    else:
        lines = ["| text to prepare | time | speed | memory |", "| --: | --: | --: | --: |"]
        lines += [
            f"| {row['bytes'] / 1e6:,.0f} MB | {row['seconds']:.1f} s "
            f"| {row['bytes'] / 1e6 / row['seconds']:.2g} MB/s | {row['memory'] / 2**20:,.0f} MiB |"
            for row in report["prepare"]
        ]
    about = report["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{report['command']}` on {about['cpus']} CPU cores, load {about['load']:.1f} before, "
            f"{about['date']}, jax {about['jax']}.",
        ]
    )


def _said(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{seconds:.0f} s"


def main(arguments: Sequence[str]) -> None:
    """Measure, print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m nvib_jax.bench.commands")
    parser.add_argument("config", nargs="?", help="the preset that is trained; none: preparing")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    given = parser.parse_args(arguments)
    line = " ".join(
        ["python -m nvib_jax.bench.commands", *([given.config] if given.config else [])]
    )
    report: dict[str, Any] = {"machine": machine(Peak(), [line]), "command": line}
    with tempfile.TemporaryDirectory(prefix="nvib-commands-") as name:
        folder = Path(name)
        if given.config:
            preset = str(Path(given.config).resolve())
            report["commands"] = list(measure_commands(preset, folder))
        else:
            report["prepare"] = list(measure_prepare(folder))
    print(markdown(report))
    if given.output:
        write_whole(given.output, json.dumps(report, indent=1) + "\n")


def _seconds(arguments: Sequence[str], folder: Path) -> float:
    """Of one command in a process of its own; one that fails says why, and ends it all."""
    unset = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["NVIB_CACHE"] = str(folder / "cache")
    if arguments[:2] == ["prepare", ""]:  # the library's own defaults, which are no preset's
        write_whole(folder / "default.py", _DEFAULT)
        arguments = ["prepare", "default.py", *arguments[2:]]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "nvib_jax", *arguments],
        cwd=folder,
        env=environment,
        input=f"{TEXTS[0]}\n",
        text=True,
        capture_output=True,
    )
    seconds = time.monotonic() - start
    print(f"nvib {' '.join(arguments)}: {seconds:.1f} s", file=sys.stderr, flush=True)
    if done.returncode:
        raise RuntimeError(f"nvib {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return seconds


if __name__ == "__main__":
    main(sys.argv[1:])
