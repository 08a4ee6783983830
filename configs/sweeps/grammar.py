"""The NVAE beside its rivals on the embedded grammar: along alpha_delta, and with a price.

    nvib sweep configs/sweeps/grammar.py --jobs 2

One data set, one budget, one decoding: quickstart's with fewer steps and no gate.
`nvae-free-SHARE` pays for vectors beyond that share of the tokens; `nvae-DELTA` pays for none and
begins with two fifths of them, so that alpha_delta alone decides.
"""

from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.presets import load_preset
from nvib_jax.sweep import changed, variants

ALPHA_DELTAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
# The quickstart as it was before it had a gate: pseudo-counts decide which vectors are there.
BASE = {
    "model": {
        "gate": "none",
        "keep_from": None,
        "pseudo_count": "relu",
        "alpha_delta": 0.5,
        "initial_kept": 0.9,
        "threshold": 0.1,
    },
    "objective": {"vector_price": 5.0, "free_vectors": 0.6, "anneal_steps": 1000},
    "train": {"steps": 2000, "eval_every": 2000},
}


def sweep() -> dict[str, Config]:
    quickstart = load_preset(Path(__file__).parent.parent / "quickstart.py")
    base = changed(quickstart, BASE)
    alone = {f"nvae-{d}": {"alpha_delta": d, "initial_kept": 0.4} for d in ALPHA_DELTAS}
    rivals: dict[str, dict[str, Any]] = {
        **{f"vts-{s}": {"kind": "VTS", "stride_share": s} for s in (0.25, 0.5, 0.75)},
        **{f"vtq-{k}": {"kind": "VTQ", "latent_queries": k} for k in (1, 6)},
        **{kind.lower(): {"kind": kind} for kind in ("VTV", "VTP", "T")},
    }
    unpriced = {"vector_price": 0.0, "free_vectors": 0.0}
    models = {f"nvae-free-{s}": {"objective": {"free_vectors": s}} for s in (0.25, 0.4, 0.6)}
    for name, model in (alone | rivals).items():
        models[name] = {"model": model, "objective": unpriced}
    return variants(base, models, range(3))
