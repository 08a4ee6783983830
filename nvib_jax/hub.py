"""The Hugging Face Hub: takes the files of a model from it, and brings a model to it.

Only the kinds of files that a caller names are ever downloaded. All callers name safetensors, JSON
and the tables of tokenizers, so that nothing that comes from the Hub can run code.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_name(text: str) -> bool:
    """Whether this may be the USER/NAME of a model.

    >>> is_name("me/quickstart"), is_name("runs"), is_name("./me/quickstart"), is_name("/me/a")
    (True, False, False, False)
    """
    return _NAME.fullmatch(text) is not None and not text.startswith(".")


def download(
    model: str, wanted: Sequence[str], *, revision: str | None = None, local_only: bool = False
) -> tuple[Path, str]:
    """Download files of a model, unless they were downloaded before.

    Args:
      model: its name.
      wanted: patterns of the names of the files that are taken.
      revision: branch, tag or commit; None is the main one.
      local_only: whether to use only what was downloaded before.

    Returns:
      (the folder with the files, the revision: the one that was asked for, otherwise the commit).

    Raises:
      FileNotFoundError: no such model; says if only the files downloaded before were looked at.
      ImportError: huggingface_hub is not installed.
    """

    def fetch() -> str:
        from huggingface_hub import snapshot_download

        patterns = list(wanted)
        return snapshot_download(
            model, revision=revision, allow_patterns=patterns, local_files_only=local_only
        )

    folder = Path(ask(model, fetch, local_only=local_only))
    return folder, revision or folder.name


def ask(model: str, request: Callable[[], T], *, local_only: bool = False) -> T:
    """What a request to the Hub about a model gives; its errors are a sentence.

    Raises:
      FileNotFoundError, ImportError: as `download`.
    """
    try:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ImportError(
            f"{model} is no folder; to ask the Hub for it, install huggingface_hub "
            "(pip install 'nvib-jax[hub]')"
        ) from error
    try:
        return request()
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{model!r} is no folder, and cannot be the name of a model of the Hub"
        ) from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:  # also what is not in the cache
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{model} is no folder, and the Hub gave no model of this name"
            f"{' (only what was downloaded before was looked at)' if local_only else ''}: {reason}"
        ) from error


def upload(
    model: str, folder: Path, *, message: str, private: bool | None, revision: str | None
) -> str:
    """Bring the files of a folder to a model of the Hub, which is made if it is not there.

    Returns:
      The commit.

    Raises:
      ValueError: the name is not of the kind USER/NAME.
      ImportError: huggingface_hub is not installed.
      OSError: the Hub did not take it, with its reason.
    """
    if not is_name(model):
        raise ValueError(f"the name is {model!r}; wanted USER/NAME, as in 'me/quickstart'")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            "to bring a model to the Hub, install huggingface_hub (pip install 'nvib-jax[hub]')"
        ) from error
    api = HfApi()
    try:
        api.create_repo(model, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(model, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=model, folder_path=folder, commit_message=message, revision=revision
        )
    except Exception as error:  # whatever the client and the network below it may raise
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"the Hub did not take {model}: {reason}") from error
    return done.oid
