"""The NVAE of Henderson & Fehr (ICLR 2023) on WikiText-2, for one accelerator.

    nvib train configs/wikitext2.py

Hardware: one GPU or TPU chip. Time and metrics: not measured yet (no accelerator was at hand). The
published run with these weights has reconstruction BLEU 70.9 (median) to 97.3 (best) and .19 of the
vectors kept. The files are WikiText-2's `wiki.*.tokens`; `--data.train PATH` names others.
"""

from nvib_jax.config import Config, ObjectiveConfig, TrainConfig
from nvib_jax.data.config import PUBLISHED_CHARACTERS, CleanConfig, DataConfig
from nvib_jax.models.nvae import NVAEConfig


def config() -> Config:
    return Config(
        data=DataConfig(
            source="text",
            train=("wikitext2/train.txt",),
            validation=("wikitext2/valid.txt",),
            test=("wikitext2/test.txt",),
            layout="wikitext",
            clean=CleanConfig(keep_characters=PUBLISHED_CHARACTERS),
            vocab_size=30_522,
            batch_size=128,
        ),
        model=NVAEConfig(
            dim=256,
            heads=1,
            latent_heads=1,
            hidden=1024,
            encoder_layers=1,
            decoder_layers=1,
            norm="post",
            dropout=0.1,
            tied=False,
            latent_bias=False,
            pseudo_count="relu",
            alpha_delta=0.3,
            num_samples=1,
            dtype="bfloat16",
        ),
        objective=ObjectiveConfig(units="published", lambda_gaussian=1e-3, lambda_dirichlet=1.0),
        train=TrainConfig(
            steps=60_000,
            optimizer="adam",
            learning_rate=1e-4,
            schedule="constant",
            warmup_steps=0,
            clip=0.1,
            log_every=200,
            eval_every=5_000,
        ),
    )
