"""Sentences of the embedded grammar through two fifths of their vectors.

    nvib train configs/quickstart.py

Measured on 2 CPU cores (shared machine, jax 0.10.2, seed 0), from a cold start with compilation and
data: 2 min 46 s, 27,000 training tokens/s. On 512 held-out sentences: 92.2 % reconstructed exactly
(untrained 0), vectors kept .43 (pseudo-count above .1, the rest not given to the decoder), .40 by
attention. Of 1,000 prior samples 55.6 % are in the language (untrained 0), all different. ELBO -7.3
nats a token.
"""

from nvib_jax.data.config import DataConfig
from nvib_jax.models.nvae import NVAEConfig
from nvib_jax.training.config import Config, ObjectiveConfig, TrainConfig


def config() -> Config:
    return Config(
        data=DataConfig(source="grammar", batch_size=64, buckets=(8, 14, 24)),
        model=NVAEConfig(
            dim=128,
            heads=4,
            latent_heads=1,
            hidden=256,
            dropout=0.0,
            pseudo_count="relu",
            alpha_delta=0.5,
            initial_kept=0.4,
            threshold=0.1,
        ),
        objective=ObjectiveConfig(
            units="elbo",
            lambda_gaussian=0.15,
            lambda_dirichlet=3.0,
            gaussian_form="exact",
            anneal="linear",
            anneal_start=200,
            anneal_steps=2000,
            dirichlet_from_start=True,
        ),
        train=TrainConfig(
            steps=4000,
            learning_rate=2e-3,
            warmup_steps=100,
            log_every=500,
            eval_every=4000,
        ),
    )
