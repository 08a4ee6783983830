"""Files that are whole or not there, with the user's umask, wherever their names lead."""

import os
import resource
import stat
import threading
from pathlib import Path

import pytest
import tiny

import nvib_jax
from nvib_jax.checkpoint.exported import export
from nvib_jax.evaluation.summary import write_summary
from nvib_jax.files import draft_of, write_whole
from nvib_jax.text_model import TextModel
from nvib_jax.training.logging import MetricWriter


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_content_and_mode(tmp_path, umask):
    for content in ("héllo\n", b"\xff\x00"):
        write_whole(tmp_path / "a", content)
        want = content if isinstance(content, bytes) else content.encode()
        assert (tmp_path / "a").read_bytes() == want
        assert mode(tmp_path / "a") == 0o666 & ~umask
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_writer_that_replaces_the_draft_gets_the_mode_too(tmp_path, umask):
    """As safetensors does, whose files are 0600."""
    with draft_of(tmp_path / "a") as draft:
        draft.unlink()
        os.close(os.open(draft, os.O_CREAT | os.O_WRONLY, 0o600))
    assert mode(tmp_path / "a") == 0o666 & ~umask


@pytest.mark.parametrize("umask", [0o027], indirect=True)
def test_exported_files_have_the_users_mode(tmp_path, umask):
    model = TextModel.load(tiny.trained()[0].train.run_dir)
    for file in export(model.description, model.params, tmp_path / "out"):
        assert mode(file) == 0o640, file
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text() == "new"


def test_no_draft_of_a_known_name_is_followed(tmp_path):
    """A link of the name that a draft had emptied what it pointed to."""
    (tmp_path / "precious").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.part").symlink_to(tmp_path / "precious")
    MetricWriter(run).close()
    write_summary(run, "page", {"trained": {"x": 1.0}})
    assert (tmp_path / "precious").read_text() == "mine"


def test_only_one_file_of_the_package_writes_files():
    """Whoever writes a file by its final name writes it half; the exceptions write into drafts."""
    known = {
        "files.py",
        "data/build.py",  # into a folder that is renamed when it is whole
        "data/tokenizer.py",
        "data/cache_folder.py",  # a draft, which is linked to its name when it is whole
        "data/prepared.py",  # a mark, whose being there is all that it says
        "bench/data.py",  # into a folder of its own, removed when it has been measured
    }
    root = Path(nvib_jax.__file__).parent
    found = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if any(word in file.read_text("utf-8") for word in (".write_text(", ".write_bytes("))
    }
    assert found <= known


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write_whole(tmp_path / "a", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk
    try:
        with pytest.raises(OSError, match=r"/a cannot be written: File too large$"):
            write_whole(tmp_path / "a", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(OSError, match=r"nowhere/a cannot be written: No such file or directory"):
        write_whole(tmp_path / "nowhere" / "a", "x")


def test_an_error_of_the_writer_is_its_own(tmp_path):
    with pytest.raises(ZeroDivisionError), draft_of(tmp_path / "a"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_two_writers_and_a_reader(tmp_path):
    """Whatever is read is one of the contents, whole; Linux replaces a name in one step."""
    contents = {letter * 100_000 for letter in "ab"}
    write_whole(tmp_path / "a", "a" * 100_000)
    threads = [
        threading.Thread(target=lambda c=c: [write_whole(tmp_path / "a", c) for _ in range(20)])
        for c in contents
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert (tmp_path / "a").read_text() in contents
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
