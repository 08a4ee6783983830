"""The published protocol: the ICLR 2023 NVAE along alpha_delta and its rivals, on WikiText-2.

    nvib sweep configs/sweeps/wikitext2.py

For one accelerator. Not run yet: no accelerator was at hand. A run differs from the next in one
field and the seed.
"""

import dataclasses
from pathlib import Path

from nvib_jax.training.config import Config, load_preset

SEEDS = (0, 1, 2)
ALPHA_DELTAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def sweep() -> dict[str, Config]:
    base = load_preset(Path(__file__).parent.parent / "wikitext2.py")
    models = {f"nvae-{delta}": {"alpha_delta": delta} for delta in ALPHA_DELTAS}
    models |= {f"vts-{share}": {"kind": "VTS", "stride_share": share} for share in (0.2, 0.5, 0.75)}
    models |= {f"vtp-{pool}": {"kind": "VTP", "pool": pool} for pool in ("mean", "max", "first")}
    models |= {f"vtq-{k}": {"kind": "VTQ", "latent_queries": k} for k in (1, 4)}
    models |= {"vtv": {"kind": "VTV"}, "t": {"kind": "T"}}
    return {
        f"{name}-s{seed}": dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, **changes),
            train=dataclasses.replace(base.train, seed=seed),
        )
        for seed in SEEDS
        for name, changes in models.items()
    }
