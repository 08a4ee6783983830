"""Text from a TFDS data set, through `tfds.data_source` and array_record, without TensorFlow.

It reads array_record only, because TFDS needs TensorFlow to read its default format, tfrecord, and
its parquet adapter silently loses rows.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from typing import Any

from nvib_jax.data.config import SPLITS, DataConfig, Split

_READ_AT_ONCE = 512
# Shards of up to this many bytes in all are identified by their content, larger ones by their
# sizes and modification times.
_HASHED_BYTES = 1 << 30
_HASHED_AT_ONCE = 1 << 20
_TENSORFLOW_ADVICE = (
    "prepare it where TensorFlow is installed (`pip install 'nvib-jax[tf]'`) with "
    "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
)


def documents(config: DataConfig, split: Split) -> Iterator[str]:
    """The text feature of every example of a split, in the order of the shards.

    Raises:
      ValueError: an unknown data set, split or feature; data that need TensorFlow.
    """
    import tensorflow_datasets as tfds

    builder = _prepared_builder(config)
    _check_feature(builder, config)
    for name in split_names(config, split):
        try:
            source = tfds.data_source(
                config.tfds_name, split=name, data_dir=_data_dir(config), download=False
            )
        except ValueError as error:
            raise ValueError(
                f"{config.source} has no split {name!r} (data.{split}), only "
                f"{sorted(builder.info.splits)}"
            ) from error
        for start in range(0, len(source), _READ_AT_ONCE):
            keys = range(start, min(start + _READ_AT_ONCE, len(source)))
            for example in source.__getitems__(list(keys)):
                yield _text(example[config.text_feature], config)


def split_names(config: DataConfig, split: Split) -> tuple[str, ...]:
    """The TFDS splits to read: those that the configuration names, else the one of this name."""
    named: tuple[str, ...] = getattr(config, split)
    if named:
        return named
    return (split,) if split in _prepared_builder(config).info.splits or split == "train" else ()


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """The version, the splits, and hashes of the shards (above 1 GiB in all, sizes and times)."""
    builder = _prepared_builder(config)
    shards = _shards(builder)
    stats = [file.stat() for file in shards]
    if sum(stat.length for stat in stats) <= _HASHED_BYTES:
        content = [_sha256(file) for file in shards]
    else:
        content = [f"{stat.length} {stat.mtime}" for stat in stats]
    return {
        "name": builder.info.full_name,
        "splits": {split: split_names(config, split) for split in SPLITS},
        "shards": content,
    }


def text_bytes(config: DataConfig) -> int:
    """Size of all shards."""
    return sum(file.stat().length for file in _shards(_prepared_builder(config)))


def _shards(builder: Any) -> list[Any]:
    return sorted(file for file in builder.data_path.iterdir() if "array_record" in file.name)


def _sha256(file: Any) -> str:
    with file.open("rb") as stream:
        found = hashlib.sha256()
        while block := stream.read(_HASHED_AT_ONCE):
            found.update(block)
    return found.hexdigest()


def _data_dir(config: DataConfig) -> str | None:
    return config.tfds_dir or None


def _prepared_builder(config: DataConfig) -> Any:
    """The builder of a data set that is on this disk in array_record; it is prepared if missing."""
    from tensorflow_datasets.core.file_adapters import FileFormat

    builder = _builder(config)
    if not builder.is_prepared():
        builder = _builder(config, file_format="array_record")
        _download_and_prepare(builder, config)
    if builder.info.file_format != FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{config.source} lies at {builder.data_path} as {builder.info.file_format.value}, "
            f"expected array_record, which needs no TensorFlow to read; {_TENSORFLOW_ADVICE}, or "
            "point data.tfds_dir at another folder"
        )
    return builder


def _builder(config: DataConfig, **options: Any) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        return tfds.builder(config.tfds_name, data_dir=_data_dir(config), **options)
    except DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(config.tfds_name.split("/")[0], known, n=3)
        advice = f"the nearest are {', '.join(near)}" if near else "no name comes near"
        raise ValueError(
            f"TFDS has no data set {config.tfds_name!r} ({advice}); a data set of your own has to "
            "be imported before, or be prepared in data.tfds_dir"
        ) from error
    except ImportError as error:
        raise _needs_tensorflow(config, error) from error


def _download_and_prepare(builder: Any, config: DataConfig) -> None:
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise _needs_tensorflow(config, error) from error
    except Exception as error:
        error.add_note(f"while TFDS downloaded and prepared {config.source} for nvib")
        raise


def _needs_tensorflow(config: DataConfig, error: ImportError) -> Exception:
    if "tensorflow" not in str(error):
        return error
    return ValueError(f"{config.source} needs TensorFlow, which is not here: {_TENSORFLOW_ADVICE}")


def _check_feature(builder: Any, config: DataConfig) -> None:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    feature = features.get(config.text_feature)
    if not isinstance(feature, tfds.features.Text):
        texts = [name for name, f in features.items() if isinstance(f, tfds.features.Text)]
        state = "no feature" if feature is None else "no text in"
        raise ValueError(
            f"{config.source} has {state} {config.text_feature!r} (data.text_feature); its text "
            f"features are {texts}"
        )


def _text(value: Any, config: DataConfig) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{config.source}: feature {config.text_feature!r} is not UTF-8: {error}"
        ) from error
