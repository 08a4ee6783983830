"""A base-size NVAE, twelve layers each way at width 768, for a slice of eight TPU chips.

    nvib train configs/base.py --data.train PATH/train.txt --data.validation PATH/valid.txt

Hardware: v5e-8, or anything with 16 GB a chip. Compiled ahead of time for v5e:2x4 (jax 0.10.2, the
longest bucket, `--dry-run --topology v5e:2x4`): 274 M parameters; on each chip 3.1 GiB of them and
their moments, 10.9 GiB in all, 10.8 TFLOP and 1.1 GiB sent a step. Never trained: time and metrics
are not known, and the objective is the quickstart's with longer ramps. The files are WikiText-103's
`wiki.*.tokens`.
"""

from nvib_jax.config import Config, MeshConfig, ObjectiveConfig, TrainConfig
from nvib_jax.data.config import PUBLISHED_CHARACTERS, CleanConfig, DataConfig
from nvib_jax.models.nvae import NVAEConfig


def config() -> Config:
    return Config(
        data=DataConfig(
            source="text",
            train=("wikitext103/train.txt",),
            validation=("wikitext103/valid.txt",),
            test=("wikitext103/test.txt",),
            layout="wikitext",
            vocab_size=32_000,
            clean=CleanConfig(keep_characters=PUBLISHED_CHARACTERS, max_tokens=127),
            batch_size=512,
            buckets=(24, 40, 64, 128),
        ),
        model=NVAEConfig(
            dim=768,
            heads=12,
            latent_heads=12,
            hidden=3072,
            encoder_layers=12,
            decoder_layers=12,
            dropout=0.1,
            pseudo_count="relu",
            alpha_delta=0.5,
            initial_kept=0.9,
            threshold=0.1,
            dtype="bfloat16",
        ),
        objective=ObjectiveConfig(
            units="elbo",
            lambda_gaussian=0.1,
            lambda_dirichlet=3.0,
            gaussian_form="exact",
            vector_price=5.0,
            free_vectors=0.6,
            anneal="linear",
            anneal_start=2_000,
            anneal_steps=20_000,
            dirichlet_from_start=True,
            word_dropout=0.1,
        ),
        train=TrainConfig(
            steps=100_000,
            learning_rate=5e-4,
            warmup_steps=4_000,
            weight_decay=0.01,
            log_every=100,
            eval_every=2_000,
            eval_sentences=4_096,
            keep_every=20_000,
        ),
        mesh=MeshConfig(),
    )
