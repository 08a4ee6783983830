"""The NVAE beside its rivals on the embedded grammar: along alpha_delta, and with a price.

    nvib sweep configs/sweeps/grammar.py --jobs 2

One data set, one budget, one decoding: quickstart's with fewer steps. `nvae-free-SHARE` pays for
vectors beyond that share of the tokens, as quickstart does; `nvae-DELTA` pays for none and begins
with two fifths of them, so that alpha_delta alone decides.
"""

import dataclasses
from pathlib import Path
from typing import Any

from nvib_jax.training.config import Config, load_preset

SEEDS = (0, 1, 2)
ALPHA_DELTAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
UNPRICED = {"vector_price": 0.0, "free_vectors": 0.0}


def run(seed: int, model: dict[str, Any], objective: dict[str, Any]) -> Config:
    config = load_preset(Path(__file__).parent.parent / "quickstart.py")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **model),
        objective=dataclasses.replace(config.objective, anneal_steps=1000, **objective),
        train=dataclasses.replace(config.train, steps=2000, eval_every=2000, seed=seed),
    )


def sweep() -> dict[str, Config]:
    priced = {f"nvae-free-{s}": ({}, {"free_vectors": s}) for s in (0.25, 0.4, 0.6)}
    alone = {f"nvae-{d}": {"alpha_delta": d, "initial_kept": 0.4} for d in ALPHA_DELTAS}
    rivals = {f"vts-{s}": {"kind": "VTS", "stride_share": s} for s in (0.25, 0.5, 0.75)}
    rivals |= {f"vtq-{k}": {"kind": "VTQ", "latent_queries": k} for k in (1, 6)}
    rivals |= {kind.lower(): {"kind": kind} for kind in ("VTV", "VTP", "T")}
    models = priced | {name: (model, UNPRICED) for name, model in (alone | rivals).items()}
    return {
        f"{name}-s{seed}": run(seed, *options) for seed in SEEDS for name, options in models.items()
    }
