"""The README's table, made from a JSON file of `nvib bench`."""

from typing import Any

from nvib_jax.bench import report

# Columns that the README's table lacks; the JSON file has them.
_LEFT_OUT = ("quartiles", "rounds")


def markdown(found: dict[str, Any]) -> str:
    """A report as a Markdown table, with a line that says where it was measured.

    Raises:
      ValueError: it is not a report of `nvib bench`.
    """
    rows = report.from_json(found)
    header, lines = report.cells(rows)
    kept = [i for i, name in enumerate(header) if name not in _LEFT_OUT]
    table = [[line[i] for i in kept] for line in [header, *lines]]
    table.insert(1, ["---"] * len(kept))
    about = found.get("machine", {})
    where = ", ".join(f"{about[k]}" for k in ("device", "date") if k in about)
    if "jax" in about:
        where += f", jax {about['jax']}"
    if "share_of" in about:
        where += f"; share of {about['share_of']}"
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return f"{text}\n\n`{found.get('command', '')}` on {where}."
