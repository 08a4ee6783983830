"""Prepares text as a cache of token ids, once; `build.py` has the stages.

The cache is a folder whose name is a hash of the relevant configuration, the text and the format:

    metadata.json  tokenizer.model  <split>.tokens  <split>.lengths.npy  <split>.checksums.npy

It is built under another name and then renamed, so that a folder with that name is always complete.
If several processes want the same cache, one builds it and the others wait (`cache_folder.py`).
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

# Fields that say where the text is. They may differ for the reader of a run.
_PLACES = {"train", "validation", "test", "tfds_dir"}


def prepare(
    config: DataConfig, *, progress: Progress | None = None, workers: int | None = None
) -> PreparedData:
    """Prepare a corpus, or open its cache if there is one.

    If several processes call this together, also on hosts that share the folder, one prepares and
    the others wait. A damaged cache is prepared again.

    Args:
      config: what to read and how to clean it. Fields of batching do not affect the cache. With a
        `digest`, the cache of that name is opened if it exists, without looking for the text.
      progress: called with a line of text at each stage.
      workers: number of processes that clean and encode; the result is the same to the byte. None
        is one per core if the text is long enough, otherwise one.

    Raises:
      FileNotFoundError: a source does not exist.
      OSError: the cache cannot be written.
      ValueError: a source cannot be read, cleaning leaves no sentence of it, or sentences are
        longer than the longest of `config.buckets`.

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
    if config.pieces != "auto":  # so that caches made before there was a choice keep their names
        relevant |= {"pieces": config.pieces, "limits": config.limits}
    encoded = json.dumps(relevant, sort_keys=True).encode()
    return hashlib.sha256(encoded).hexdigest()[:16]


def _named(config: DataConfig, root: Path, report: Progress) -> PreparedData | None:
    """The data that the config's digest names, or None if they are not in this cache folder."""
    data = _open(root / config.digest, report)
    if data is None:
        return None
    # A field that was not there when the data were prepared had no effect: it was at its default.
    wanted, found = described(config), described(DataConfig()) | data.metadata["config"]
    differ = [
        f"{name} is {wanted[name]!r} and theirs {found[name]!r}"
        for name in sorted(wanted.keys() - _PLACES)
        if wanted[name] != found[name]
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
    """Build the cache, or wait for the process that does."""
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
            # Another process may have finished after this one looked and before it had the claim.
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
