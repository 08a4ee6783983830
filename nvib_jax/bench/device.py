"""The device's peak rate, and a description of the machine."""

import datetime
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.bench.timing import Program, compile_program

# A prefix of `device_kind` -> the dense peak of one jax device in FLOP/s, for (bfloat16, float32
# products at default precision). TPUs: cloud.google.com/tpu/docs, the page of each version; by
# default they multiply float32 in bfloat16. GPUs: NVIDIA's data sheets of the SXM modules, without
# sparsity; XLA's default for float32 there is TF32. PCIe boards are slower and are not listed.
PEAKS: dict[str, tuple[float, float]] = {
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5e": (197e12, 197e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
    "TPU v6e": (918e12, 918e12),
    "NVIDIA A100": (312e12, 156e12),
    "NVIDIA H100 80GB HBM3": (989e12, 494.5e12),
    "NVIDIA H200": (989e12, 494.5e12),
}
_SIDE = 1536  # rows of the square matrices whose product is timed for the CPU's rate


class Peak:
    """Maps a dtype's name to the device's peak FLOP/s.

    A CPU has no published peak. It has a `yardstick` instead, a product that is timed.
    """

    def __init__(self) -> None:
        self.kind = jax.devices()[0].device_kind
        self.yardstick = matmul() if jax.default_backend() == "cpu" else None

    @property
    def source(self) -> str:
        """A description of the rate that the "share" column is relative to."""
        if self.yardstick is not None:
            return f"the rate of a float32 {_SIDE}x{_SIDE} matmul in the same rounds"
        known = self("bfloat16") is not None
        return "the published dense peak" if known else "nothing: no peak for this device"

    def __call__(self, dtype: str) -> float | None:
        """Peak FLOP/s, or None for a device that is not in the table."""
        known = [peaks for name, peaks in PEAKS.items() if self.kind.startswith(name)]
        return known[0][0 if dtype == "bfloat16" else 1] if known else None


def matmul() -> tuple[Program, float]:
    """(a program that multiplies two random float32 matrices, its number of operations)."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(_SIDE, _SIDE)), jnp.float32) for _ in range(2))
    return compile_program(jnp.matmul, a, b), 2.0 * _SIDE**3


def machine(peak: Peak, command: Sequence[str]) -> dict[str, Any]:
    """A description of the machine for the report; `load` shows how busy other work kept it."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": peak.kind,
        "platform": jax.default_backend(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load": load,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": now,
        "share_of": peak.source,
        "command": " ".join(command),
    }
