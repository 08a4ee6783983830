"""Reads `metrics.jsonl`, which has one record per line, even if some of its lines are damaged.

The file grows while a run trains. A kill or a full disk may leave a line cut off, empty or
nonsense. Such a line is not a record; the other lines are still read.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record in a line, or None if the line is not a record.

    A record is a JSON object with an integer "step"; all other values except "split" are numbers.

    >>> parse_record(b'{"step": 3, "split": "train", "loss": 2.5}')
    {'step': 3, 'split': 'train', 'loss': 2.5}
    >>> parse_record(b"{}") is parse_record(b'{"step": 3, "lo') is parse_record(b"\\xff") is None
    True
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    numbers = all(isinstance(v, int | float) for k, v in record.items() if k != "split")
    return record if numbers and isinstance(record.get("split", ""), str) else None


def records_of(path: str | Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a file that are not blank, each with its record; nothing if there is no file.

    Raises:
      OSError: the file cannot be read.
    """
    if not Path(path).exists():
        return
    for line in Path(path).read_bytes().split(b"\n"):
        if line.strip():
            yield line, parse_record(line)


def as_csv(runs: Sequence[str | os.PathLike[str]], *, split: str | None = None) -> str:
    """The records of runs as comma-separated values with a line of names, for a spreadsheet.

    The first columns are run, split and step; a metric that a record lacks is empty.

    Args:
      runs: folders.
      split: "train" or "validation"; None is both.

    Raises:
      FileNotFoundError: a folder has no metrics.
    """
    rows = []
    for run in map(Path, runs):
        if not (run / METRICS).is_file():
            raise FileNotFoundError(f"{run} has no {METRICS}; wanted the folder of a run")
        rows += [
            {"run": str(run), "split": record.get("split", ""), **record}
            for _, record in records_of(run / METRICS)
            if record is not None and split in (None, record.get("split"))
        ]
    names = dict.fromkeys(["run", "split", "step", *(name for row in rows for name in row)])
    found = io.StringIO()
    table = csv.DictWriter(found, list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return found.getvalue()
