"""Reads `metrics.jsonl`, which has one record per line, even if some of its lines are damaged.

The file grows while a run trains. A kill or a full disk may leave a line cut off, empty or
nonsense. Such a line is not a record; the other lines are still read.
"""

import json
from collections.abc import Iterator
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
