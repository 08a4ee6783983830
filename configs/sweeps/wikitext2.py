"""The published protocol: the ICLR 2023 NVAE along alpha_delta and its rivals, on WikiText-2.

    nvib sweep configs/sweeps/wikitext2.py

For one accelerator. Not run yet: no accelerator was at hand. A run differs from the next in one
field and the seed.
"""

from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.presets import load_preset
from nvib_jax.sweep import variants

MODELS: dict[str, dict[str, Any]] = {
    **{f"nvae-{d}": {"alpha_delta": d} for d in (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)},
    **{f"vts-{s}": {"kind": "VTS", "stride_share": s} for s in (0.2, 0.5, 0.75)},
    **{f"vtp-{pool}": {"kind": "VTP", "pool": pool} for pool in ("mean", "max", "first")},
    **{f"vtq-{k}": {"kind": "VTQ", "latent_queries": k} for k in (1, 4)},
    "vtv": {"kind": "VTV"},
    "t": {"kind": "T"},
}


def sweep() -> dict[str, Config]:
    base = load_preset(Path(__file__).parent.parent / "wikitext2.py")
    return variants(base, {name: {"model": model} for name, model in MODELS.items()}, range(3))
