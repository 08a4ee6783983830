"""Configurations small enough to prepare in a moment."""

from pathlib import Path

from nvib_jax.data.config import CleanConfig, DataConfig

LINES = [f"the {a} {b} sat on the {c} mat." for a in ["red", "big", "old"] for b in ("cat", "dog")
         for c in ["new", "wet", "tiny"]]  # fmt: skip


def grammar_config(folder, **options):
    sizes = {"num_train": 400, "num_validation": 50, "num_test": 40}
    return DataConfig(cache_dir=str(folder), **(sizes | options))


def make_text_config(folder):
    """`LINES` in a file, the cache in a folder of its own."""
    file = Path(folder) / "text.txt"
    file.write_text("\n".join(LINES))
    return DataConfig(
        source="text",
        train=(str(file),),
        vocab_size=50,
        cache_dir=str(Path(folder) / "cache"),
        clean=CleanConfig(min_tokens=3),
    )
