"""The NVAE beside its rivals on WikiText-2, on a laptop: about 20 minutes a run on 2 cores.

    nvib sweep configs/sweeps/wikitext2_cpu.py

One data set, one budget, one decoding: a run differs from the next in one field and the seed. The
settings and the files are those of configs/wikitext2_cpu.py. Not run as a whole yet.
"""

import dataclasses
from pathlib import Path

from nvib_jax.training.config import Config, load_preset

SEEDS = (0, 1, 2)
MODELS = {
    **{f"nvae-{delta}": {"alpha_delta": delta} for delta in (0.2, 0.3, 0.5)},
    **{f"vts-{share}": {"kind": "VTS", "stride_share": share} for share in (0.25, 0.4)},
    "vtv": {"kind": "VTV"},
    "vtp": {"kind": "VTP"},
}


def sweep() -> dict[str, Config]:
    base = load_preset(Path(__file__).parent.parent / "wikitext2_cpu.py")
    return {
        f"{name}-s{seed}": dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, **changes),
            train=dataclasses.replace(base.train, seed=seed),
        )
        for seed in SEEDS
        for name, changes in MODELS.items()
    }
