"""Formats rows as a table for the terminal and as a JSON object for a file."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nvib_jax.bench.timing import Row

Table = tuple[list[str], list[list[str]]]


def to_json(machine: dict[str, Any], command: str, rows: Iterable[Row]) -> dict[str, Any]:
    """`{"machine": ..., "command": ..., "rows": [...]}`, plain numbers and strings throughout."""
    found = {"machine": machine, "command": command, "rows": [dataclasses.asdict(r) for r in rows]}
    return json.loads(json.dumps(found))


def from_json(report: dict[str, Any]) -> list[Row]:
    """The rows of a report.

    Raises:
      ValueError: it is not a report of `nvib bench`.
    """
    try:
        return [Row(**{**row, **_tuples(row)}) for row in report["rows"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no report of nvib bench: {error!r}") from error


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    pairs = ("spread", "ratio_spread")
    return {name: tuple(row[name]) for name in pairs if row.get(name) is not None}


def cells(rows: Sequence[Row]) -> Table:
    """(header, lines) as text, without columns that are empty in all rows."""
    labels = list(dict.fromkeys(name for row in rows for name in row.labels))
    extra = list(dict.fromkeys(name for row in rows for name in row.extra))
    columns: list[tuple[str, Callable[[Row], str]]] = [
        *((name, lambda row, name=name: row.labels.get(name, "")) for name in labels),
        ("implementation", lambda row: row.implementation),
        ("time", lambda row: _duration(row.seconds)),
        ("quartiles", lambda row: _pair(row.spread, _duration)),
        ("rounds", lambda row: str(row.rounds) if row.rounds else ""),
        ("times faster", _ratio),
        ("per second", lambda row: _rate(row.per_second, f" {row.unit}")),
        ("FLOP/s", lambda row: _rate(row.flops_per_second)),
        ("share", lambda row: _percent(row.share)),
        ("memory", lambda row: _bytes(row.memory)),
        ("compile", lambda row: _duration(row.compile_seconds)),
        ("error", lambda row: "" if row.error is None else f"{row.error:.1e}"),
        *((name, lambda row, name=name: _number(row.extra.get(name))) for name in extra),
        ("remark", lambda row: row.reason),
    ]
    filled = [(name, [show(row) for row in rows]) for name, show in columns]
    filled = [(name, column) for name, column in filled if any(column)]
    return [name for name, _ in filled], [list(line) for line in zip(*(c for _, c in filled))]  # noqa: B905


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    header, lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *lines]
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _pair(pair: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    return "" if pair is None else f"{show(pair[0])} - {show(pair[1])}"


def _ratio(row: Row) -> str:
    if row.ratio is None or row.ratio_spread is None:
        return ""
    if row.implementation == row.baseline:
        return "1"
    low, high = row.ratio_spread
    return f"{row.ratio:.2f} ({low:.2f} - {high:.2f})"


def _rate(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit.strip() and unit}".rstrip()
    return f"{value:.3g}{unit}".rstrip()


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g}%"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.3g} MiB"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
