"""Raw text from files, and what a bad file gets."""

import pytest

from nvib_jax.data import sources, text_files
from nvib_jax.data.config import DataConfig


def text(train, **options):
    return DataConfig(source="text", train=tuple(map(str, train)), **options)


def read(config, split="train"):
    return list(sources.read_sentences(config, split))


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_lines_of_files_and_globs_in_order(file, tmp_path):
    file("b.txt", "three\r\nfour")
    file("c.txt", "five\n")
    file("a.txt", "\ufeffone\ntwo\n")
    lines = ["one", "two", "three", "four", "five"]
    assert read(text([tmp_path / "*.txt"], layout="lines")) == lines
    # Named twice, read once.
    assert read(text([tmp_path / "a.txt", tmp_path / "?.txt"], layout="lines")) == lines


def test_wrapped_prose_is_joined(file):
    path = file("book.txt", "He ran to\nthe hill. She\nsat.\nThey left\n\nCHAPTER\n\nIt rained\n")
    assert read(text([path], layout="running")) == [
        "He ran to the hill. She sat.",
        "They left",
        "CHAPTER",
        "It rained",
    ]


@pytest.mark.parametrize(
    ("lines", "layout"),
    [
        ([" = Title = ", "", "He ran . She sat ."], "wikitext"),
        (["The red @-@ tipped one ."], "wikitext"),
        (["He ran.", "She sat.", "They left."], "lines"),
        (["he ran", "she sat", "they left"], "lines"),
        (["He met Mr. Smith at noon.", "She sat.", "They left.", "It rained.", "Up."], "lines"),
        (["He ran. She sat.", "They left. It rained."], "running"),
        (
            ["It was late and he ran to", "the hill. She sat there", "for hours and did not"],
            "running",
        ),
        ([], "lines"),
    ],
)
def test_layout_is_told_from_the_text(lines, layout):
    assert sources.detect_layout(lines) == layout


def test_layout_is_told_from_the_training_data(file):
    train, other = file("t.txt", " = A = \nHe ran .\n"), file("v.txt", "He ran.\n")
    config = text([train], validation=(str(other),))
    assert sources.resolve_layout(config) == "wikitext"
    assert sources.resolve_layout(text([train], layout="lines")) == "lines"
    assert sources.resolve_layout(DataConfig()) == "lines"


def test_grammar_splits_differ_and_have_their_sizes():
    config = DataConfig(num_train=30, num_validation=20, num_test=10)
    splits = {split: read(config, split) for split in ("train", "validation", "test")}
    assert [len(sentences) for sentences in splits.values()] == [30, 20, 10]
    assert not set(splits["train"]) & set(splits["validation"]) & set(splits["test"])
    assert read(DataConfig(seed=1, num_train=30)) != splits["train"]


# ---- what bad input gets


def test_missing_files(tmp_path):
    missing = tmp_path / "none.txt"
    with pytest.raises(FileNotFoundError, match=r"data.train names no file: '.*none.txt' matches"):
        read(text([missing]))
    with pytest.raises(FileNotFoundError, match=r"data.validation .*\*.dat' matches nothing"):
        read(DataConfig(source="text", validation=(f"{tmp_path}/*.dat",)), "validation")
    with pytest.raises(ValueError, match=r"data.source='text' needs files in data.train, got none"):
        read(DataConfig(source="text"))


def test_a_folder_stands_for_its_texts(file, tmp_path):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"names a folder without \*.txt: .*corpus'; wanted"
    ):
        read(text([tmp_path / "corpus"]))
    file("corpus/b.txt", "two\n")
    file("corpus/a.txt", "one\n")
    file("corpus/c.md", "three\n")
    assert read(text([tmp_path / "corpus"], layout="lines")) == ["one", "two"]


def test_urls_are_read(file, tmp_path):
    """Through fsspec, as gs:// is where gcsfs is installed."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/nvib/a.txt": b"one\ntwo\n", "/nvib/b.txt": "drei\nvïer".encode()})
    try:
        lines = ["one", "two", "drei", "vïer"]
        assert read(text(["memory://nvib/*.txt"], layout="lines")) == lines
        assert read(text(["memory://nvib"], layout="lines")) == lines
        assert read(text(["memory://nvib/b.txt"], layout="lines")) == lines[2:]
        same = text([file("x.txt", "one\ntwo\n")])
        assert sources.fingerprint(text(["memory://nvib/a.txt"])) == sources.fingerprint(same)
        with pytest.raises(FileNotFoundError, match=r"'memory://nvib/c.txt' matches nothing"):
            read(text(["memory://nvib/c.txt"]))
    finally:
        memory.rm("/nvib", recursive=True)
    with pytest.raises(ValueError, match=r"'nowhere://x' cannot be read: Protocol not known"):
        read(text(["nowhere://x"]))


def test_a_line_without_end_is_read_in_pieces(file, monkeypatch):
    monkeypatch.setattr(text_files, "_LONGEST_LINE", 16)
    path = file("long.txt", "one two three four five\n" + "é" * 20 + "\nlast")
    lines = read(text([path], layout="lines"))
    assert all(len(line.encode()) <= 16 for line in lines)
    assert "".join(lines) == "one two three four five" + "é" * 20 + "last"
    assert lines[:2] == ["one two three ", "four five"]


def test_paragraphs_are_bounded(file, monkeypatch):
    monkeypatch.setattr(sources, "_LONGEST_PARAGRAPH", 10)
    path = file("endless.txt", "no end mark\n" * 5)
    assert read(text([path], layout="running")) == ["no end mark"] * 5


def test_empty_file(file):
    with pytest.raises(ValueError, match=r"data.train: .*empty.txt is empty, expected UTF-8 text"):
        read(text([file("empty.txt", "")]))


def test_non_utf8_names_file_offset_and_line(file):
    path = file("latin.txt", b"fine\nalso fine\ncaf" + b"\xe9 au lait\n")
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8: byte 0xe9 at offset 18 .line 3"):
        read(text([path]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "texts"}, "data.source must be .*'tfds:NAME' or 'hf:USER/NAME', got 'texts'"),
        ({"batch_size": "8"}, "data.batch_size is '8'"),
        ({"cache_dir": 5}, "data.cache_dir is 5"),
        ({"digest": "../.."}, "data.digest is '../..'; wanted 16 hexadecimal digits"),
        ({"source": "tfds:"}, "data.source must be .* got 'tfds:'"),
        ({"source": "hf:"}, "data.source must be .* got 'hf:'"),
        ({"vocab_size": 0}, "data.vocab_size must be at least 1, got 0"),
        ({"num_test": -1}, "data.num_test must be at least 0, got -1"),
        ({"buckets": (16, 8)}, r"data.buckets must be positive and rising, got \(16, 8\)"),
        ({"layout": "word"}, "data.layout is 'word'; wanted one of .*'wikitext'"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_bad_length_limits():
    from nvib_jax.data.config import CleanConfig

    with pytest.raises(ValueError, match=r"data.clean.min_tokens .* got 9 and 3"):
        CleanConfig(min_tokens=9, max_tokens=3)
