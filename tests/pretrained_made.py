"""Tiny models of some families, made without `transformers`: random weights, a word tokenizer."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tiny import folder

from nvib_jax.bench.out_of_domain import word_tokenizer
from nvib_jax.data.translation import sentence_pairs, vocabulary
from nvib_jax.pretrained import PretrainedModel, fresh

IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
        **IDS,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        **IDS,
    },
    "bart": {
        "model_type": "bart",
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 40,
        **IDS,
    },
    "t5": {
        "model_type": "t5",
        "d_model": 16,
        "d_kv": 6,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        **IDS,
    },
}


@functools.cache
def tokenizer_folder() -> Path:
    """A folder with a tokenizer of whole words."""
    path = folder() / "words"
    path.mkdir(exist_ok=True)
    if not (path / "tokenizer.json").is_file():
        word_tokenizer(path)
    return path


@functools.cache
def made(family: str) -> PretrainedModel:
    """A tiny model; every parameter is random, biases and norms too."""
    config = {**CONFIGS[family], "vocab_size": len(vocabulary()) + 3}
    model = fresh(config, tokenizer_folder())
    keys = jax.random.split(jax.random.key(7), len(model.params))
    params = {
        name: param + (0.3 if param.ndim == 1 else 0.0) * jax.random.normal(key, param.shape)
        for key, (name, param) in zip(keys, model.params.items(), strict=True)
    }
    if family == "t5":
        for stack in ("encoder", "decoder"):
            name = f"{stack}.bias.relative"
            params[name] = jax.random.normal(jax.random.key(3), params[name].shape)
    return dataclasses.replace(model, params={n: jnp.asarray(p) for n, p in params.items()})


def pairs(count: int = 12, seed: int = 5) -> tuple[list[str], list[str]]:
    """Short sentences and their translations."""
    return sentence_pairs("in", count, seed=seed)


def given(family: str, count: int = 12, seed: int = 5) -> tuple[list[str], ...]:
    """What a family's methods take: texts, and targets if it has two stacks."""
    texts, targets = pairs(count, seed)
    return (texts, targets) if made(family).architecture.kind == "seq2seq" else (texts,)
