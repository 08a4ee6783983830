"""The NVAE along alpha_delta beside its rivals, on the embedded grammar, three seeds each.

    nvib sweep configs/sweeps/grammar.py --jobs 2

One data set, one budget, one decoding: a run differs from the next in one field and the seed. The
settings are quickstart's with fewer steps.
"""

import dataclasses
from pathlib import Path

from nvib_jax.training.config import Config, load_preset

SEEDS = (0, 1, 2)
ALPHA_DELTAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def base() -> Config:
    config = load_preset(Path(__file__).parent.parent / "quickstart.py")
    return dataclasses.replace(
        config,
        objective=dataclasses.replace(config.objective, anneal_steps=1000),
        train=dataclasses.replace(config.train, steps=2000, eval_every=2000),
    )


def sweep() -> dict[str, Config]:
    models = {f"nvae-{delta}": {"alpha_delta": delta} for delta in ALPHA_DELTAS}
    models |= {
        f"vts-{share}": {"kind": "VTS", "stride_share": share} for share in (0.25, 0.5, 0.75)
    }
    models |= {f"nvae-kept-{share}": {"initial_kept": share} for share in (0.2, 0.3)}
    models |= {"vtv": {"kind": "VTV"}, "vtp": {"kind": "VTP"}, "t": {"kind": "T"}}
    models |= {f"vtq-{k}": {"kind": "VTQ", "latent_queries": k} for k in (1, 6)}
    return {
        f"{name}-s{seed}": dataclasses.replace(
            base(),
            model=dataclasses.replace(base().model, **changes),
            train=dataclasses.replace(base().train, seed=seed),
        )
        for seed in SEEDS
        for name, changes in models.items()
    }
