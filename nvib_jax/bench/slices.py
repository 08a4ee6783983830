"""The README's table of training steps that were compiled for TPU slices without having one.

It is made from a JSON list of `nvib_jax.training.dry_run.DryRun.to_dict()`, each with "preset",
"topology" and "jax" added. The two times are computed and not measured: the operations at the
chip's published peak, and the bytes at its published rate between chips. A step takes longer than
either.
"""

from typing import Any

from nvib_jax.bench.device import PEAKS

# Bytes per second that a chip can send to others: cloud.google.com/tpu/docs, each version's page.
SENDS = {"TPU v5 lite": 200e9, "TPU v5": 600e9, "TPU v6 lite": 448e9}
_PEAKS = {**{name: bf16 for name, (bf16, _) in PEAKS.items()}, "TPU v5": PEAKS["TPU v5p"][0]}
_MIB = 2**20


def markdown(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table, one row each."""
    header = (
        *("preset", "slice", "mesh", "sentences", "state", "temporary", "in all", "TFLOP"),
        *("at peak", "sent", "at the links' rate", "jax"),
    )
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(_row(r)) + " |" for r in records)])


def _row(record: dict[str, Any]) -> list[str]:
    kind = record["devices"].split(" x ", 1)[1]
    mesh = " x ".join(f"{name} {size}" for name, size in record["mesh"].items() if size > 1)
    flops, sent = record["flops"], sum(record["sent_bytes"].values())
    return [
        record["preset"],
        record["topology"],
        mesh,
        f"{record['batch'][0]:,}",
        *(
            f"{record[n] / _MIB:,.0f} MiB"
            for n in ("state_bytes", "temporary_bytes", "total_bytes")
        ),
        f"{flops / 1e12:.1f}",
        f"{1e3 * flops / _PEAKS[kind]:.0f} ms",
        f"{sent / _MIB:,.0f} MiB",
        f"{1e3 * sent / SENDS[kind]:.1f} ms",
        record["jax"],
    ]
