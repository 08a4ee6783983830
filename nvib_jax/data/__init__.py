"""The data pipeline: source -> clean -> sentences -> tokenizer -> cache -> batches.

    config.py     what to read, how to clean, tokenise and batch it
    sources.py    raw text: the embedded grammar (grammar.py), files (text_files.py), TFDS
    clean.py      raw text -> sentences (sentence_ends.py); what is lost is counted (dropped.py)
    tokenizer.py  sentences <-> ids
    prepare.py    all of it into a cache on disk, once (build.py, workers.py, cache_folder.py)
    prepared.py   the cache, opened; its ids are a flat file (token_file.py)
    batches.py    the batch of any step

Importing this package loads numpy only. lark, sentencepiece, array_record, grain and TFDS are
imported by the functions that need them, and TensorFlow is never imported.
"""

from nvib_jax.data.batches import Batch, Batches, choose_buckets
from nvib_jax.data.clean import clean_text
from nvib_jax.data.config import CleanConfig, DataConfig
from nvib_jax.data.grammar import Grammar, default_grammar
from nvib_jax.data.prepare import prepare
from nvib_jax.data.prepared import PreparedData
from nvib_jax.data.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "Batches",
    "CleanConfig",
    "DataConfig",
    "Grammar",
    "PreparedData",
    "Tokenizer",
    "choose_buckets",
    "clean_text",
    "default_grammar",
    "prepare",
]
