"""Text to a cache of token ids, once: who builds it, where it lies and what it is called.

The cache is a folder named by a hash of the configuration that matters, of the text itself and of
the format:

    metadata.json  tokenizer.model  <split>.tokens  <split>.lengths.npy  <split>.checksums.npy

It is built beside its place under another name and moved there whole, so that a folder with that
name is complete, whatever interrupts or runs beside it; of processes that want the same, one
builds and the others wait (`cache_folder.py`). The stages are in `build.py`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from nvib_jax.data import cache_folder, sources
from nvib_jax.data.batches import check_buckets
from nvib_jax.data.build import Progress, build, described
from nvib_jax.data.cache_folder import Claim, building_folder, discard, remove_abandoned
from nvib_jax.data.config import DataConfig, cache_root
from nvib_jax.data.prepared import FORMAT_VERSION, PreparedData

# Fields that say where the text lies, which may be elsewhere for the reader of a run.
_PLACES = {"train", "validation", "test", "tfds_dir"}


def prepare(
    config: DataConfig, *, progress: Progress | None = None, workers: int | None = None
) -> PreparedData:
    """Prepares a corpus, or opens the cache of it where there is one.

    Of several processes that call this together, also on hosts that share the folder, one prepares
    and the others wait. A damaged cache is prepared again.

    Args:
      config: what to read and how to clean it. Fields of batching have no part in the cache. With
        a `digest` the cache of that name is opened where there is one, and no text is looked for.
      progress: called with a line of text at each stage.
      workers: processes that clean and encode, with the same result to the byte; None for as many
        as there are cores, where the text is long enough.

    Raises:
      FileNotFoundError: a source that is not there.
      OSError: the cache cannot be written.
      ValueError: a source that cannot be read, or of which no sentence is left after cleaning;
        sentences that are longer than `config.buckets` say.

    >>> data = prepare(DataConfig(num_train=200, num_validation=20, num_test=0, cache_dir="cache"))
    >>> {split: len(lengths) for split, lengths in data.lengths.items()}
    {'train': 200, 'validation': 20}
    """
    report = progress or (lambda line: None)
    root = cache_root(config)
    data = _named(config, root, report) if config.digest else None
    if data is None:
        digest = _digest_of_text(config, root)
        data = _open(root / digest, report)
        if data is None:
            data = _build_once(config, digest, root, report, workers)
    if config.buckets:
        check_buckets(config.buckets, data.max_tokens)
    return data


def cache_hash(config: DataConfig) -> str:
    """Hash of everything that the prepared data depend on: 16 hexadecimal digits."""
    relevant: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "source": config.source,
        "vocab_size": config.vocab_size,
        "tokenizer_sentences": config.tokenizer_sentences,
        "text": sources.fingerprint(config),
    }
    if config.source != "grammar":
        relevant |= {
            "layout": config.layout,
            "text_feature": config.text_feature,
            "clean": dataclasses.asdict(config.clean),
        }
    encoded = json.dumps(relevant, sort_keys=True).encode()
    return hashlib.sha256(encoded).hexdigest()[:16]


def _named(config: DataConfig, root: Path, report: Progress) -> PreparedData | None:
    """The data that the config's digest names, where they are here."""
    data = _open(root / config.digest, report)
    if data is None:
        return None
    wanted, found = described(config), data.metadata["config"]
    differ = [
        f"{name} is {wanted[name]!r} and theirs {found.get(name)!r}"
        for name in sorted(wanted.keys() - _PLACES)
        if wanted[name] != found.get(name)
    ]
    if differ:
        raise ValueError(
            f"data.digest {config.digest!r} names other data: {'; '.join(differ)}; wanted the "
            "fields that they were prepared with, or data.digest ''"
        )
    return data


def _digest_of_text(config: DataConfig, root: Path) -> str:
    try:
        return cache_hash(config)
    except FileNotFoundError as error:
        if not config.digest:
            raise
        raise FileNotFoundError(
            f"{error}; nor are the run's prepared data there, {root / config.digest}"
        ) from error


def _open(folder: Path, report: Progress) -> PreparedData | None:
    if not folder.is_dir():
        return None
    try:
        return PreparedData.load(folder)
    except (FileNotFoundError, ValueError) as error:
        report(str(error))
        return None


def _build_once(
    config: DataConfig, digest: str, root: Path, report: Progress, workers: int | None
) -> PreparedData:
    """Builds the cache, or waits for the process that does."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_abandoned(root)
        claim = Claim(root, digest)
        while not claim.take():
            report(f"waiting for {root / digest}, which {claim.owner() or 'another'} prepares")
            while claim.is_held():
                time.sleep(cache_folder.LOOK_SECONDS)
            if (data := _open(root / digest, report)) is not None:
                return data
        try:
            # Another may have finished between the look at the cache and the claim.
            if (data := _open(root / digest, lambda line: None)) is not None:
                return data
            discard(root / digest)
            with building_folder(root, digest) as folder:
                build(config, digest, folder, report, workers)
        finally:
            claim.give_up()
    except OSError as error:
        if isinstance(error, FileNotFoundError | ChildProcessError):
            raise
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise OSError(
            error.errno,
            f"{error.strerror} where prepared data are written; wanted room for about the size of "
            "the text twice, in the folder that NVIB_CACHE or data.cache_dir names",
            str(root),
        ) from error
    report(f"prepared {root / digest}")
    return PreparedData.load(root / digest)
