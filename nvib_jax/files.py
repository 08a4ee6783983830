"""Writes files so that they are complete or absent: under a new name, then renamed into place.

A reader sees the old content or the new one, never half of it; after a kill or on a full disk the
old content remains. The file with the new name is created exclusively, so that no link is followed
and no two processes write to the same draft. This file needs the standard library only.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file so that it is never seen half written, with the mode of the user's umask.

    Args:
      path: the file. An existing file is replaced; a link is replaced and not followed.
      content: bytes, or text that is encoded as UTF-8.

    Raises:
      OSError: it cannot be written; the error names file and reason, and the old file remains.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/a.txt", "whole")
    ...     os.listdir(folder), Path(folder, "a.txt").read_text()
    (['a.txt'], 'whole')
    """
    with draft_of(path) as draft, draft.open("r+b") as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def draft_of(path: str | Path) -> Iterator[Path]:
    """Within it, an empty file with a new name in the folder of `path`; at its end, the file is
    renamed to `path`.

    It is for writers that open their file themselves. They may replace the draft by another file,
    which also gets the mode of the user's umask.

    Args:
      path: the file to write.

    Raises:
      OSError: it cannot be written; the error names file and reason, and the old file remains.
    """
    path = Path(path)
    draft = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        # O_EXCL refuses a name that exists, even as a link. The system applies the umask to 0666.
        made = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = os.fstat(made).st_mode & 0o777
        os.close(made)
        yield draft
        if draft.stat().st_mode & 0o777 != mode:
            draft.chmod(mode)
        draft.replace(path)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        said = OSError(f"{path} cannot be written: {reason}")
        said.errno = error.errno
        raise said from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
