"""The NVAE beside its rivals on WikiText-2, on a laptop: about an hour a run on one core.

    nvib sweep configs/sweeps/wikitext2_cpu.py

One data set, one budget, one decoding: a run differs from the next in what its name says and the
seed. The settings and the files are those of configs/wikitext2_cpu.py; `pace-SHARE` is the gate of
configs/quickstart.py, `vts-SHARE` a stride. Not run as a whole yet.
"""

from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.presets import load_preset
from nvib_jax.sweep import variants

PACE: dict[str, Any] = {
    "gate": "pace",
    "alpha_delta": 4.0,
    "pseudo_count": "exp_linear",
    "threshold": None,
}
MODELS: dict[str, dict[str, Any]] = {
    **{f"nvae-{d}": {"alpha_delta": d} for d in (0.2, 0.3, 0.5)},
    **{f"pace-{s}": {**PACE, "gate_share": s} for s in (0.3,)},
    **{f"vts-{s}": {"kind": "VTS", "stride_share": s} for s in (0.25, 0.3, 0.4)},
    "vtv": {"kind": "VTV"},
    "vtp": {"kind": "VTP"},
}


def sweep() -> dict[str, Config]:
    base = load_preset(Path(__file__).parent.parent / "wikitext2_cpu.py")
    return variants(base, {name: {"model": model} for name, model in MODELS.items()}, range(3))
