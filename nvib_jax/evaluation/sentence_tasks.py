"""Reads STS and SentEval's files in the formats in which they are published; downloads nothing.

    STS benchmark   sts-test.csv: genre, filename, year, id, score, sentence, sentence (tabs)
                    GLUE's dev.tsv: the same with a header, the sentences and the score last
    STS 2012-2016   STS.input.NAME.txt: sentence, sentence (tabs); STS.gs.NAME.txt: a score a line
    probing tasks   NAME.txt: tr, va or te; label; sentence (tabs)
    MR, CR, SUBJ    a file for each class, a sentence a line
    SST             sentence, label (tab); a file each for train, dev and test
    TREC            LABEL:more sentence; train_5500.label and TREC_10.label

Source: Cer et al. (2017) and Agirre et al. (2012) to (2016) for STS; Conneau & Kiela (2018),
SentEval, arXiv 1803.05449, and Conneau et al. (2018), arXiv 1805.01070, for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Labelled = list[tuple[str, str]]


@dataclass(frozen=True)
class Similarity:
    """Pairs of sentences and how alike people find them.

    Attributes:
      name: of the set.
      a, b: the sentences of each pair.
      scores: 0 to 5.
    """

    name: str
    a: list[str]
    b: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Classification:
    """Sentences with labels, as (label, sentence).

    Attributes:
      name: of the task.
      train: to fit on.
      test: to measure on; empty if the task is measured by cross-validation.
    """

    name: str
    train: Labelled
    test: Labelled


def read_sts_benchmark(path: str | Path) -> Similarity:
    """The STS benchmark: `sts-dev.csv`, `sts-test.csv`, or GLUE's `dev.tsv` with its header.

    Raises:
      ValueError: a line has too few columns, or its score is no number; the error names both.
    """
    path = Path(path)
    lines = _lines(path)
    header = lines[0].split("\t") if lines else []
    glue = "sentence1" in header
    columns = [header.index(n) for n in ("score", "sentence1", "sentence2")] if glue else [4, 5, 6]
    pairs = []
    for number, line in enumerate(lines, 1):
        if (glue and number == 1) or not line:
            continue
        parts = line.split("\t")
        if len(parts) <= max(columns):
            raise ValueError(
                f"{path}:{number} has {len(parts)} columns; wanted at least {max(columns) + 1}"
            )
        score, a, b = (parts[column].strip() for column in columns)
        pairs.append((_score(path, number, score), a, b))
    return _similarity(path, path.stem, pairs)


def read_sts(folder: str | Path) -> list[Similarity]:
    """A year of STS: each `STS.input.NAME.txt` with its `STS.gs.NAME.txt`, sorted by name.

    Pairs without a score, an empty line there, are left out.

    Raises:
      ValueError: no such files, one without scores, or numbers of lines that differ.
    """
    folder = Path(folder)
    found = []
    for path in sorted(folder.glob("STS.input.*.txt")):
        gold = folder / path.name.replace("STS.input.", "STS.gs.")
        if not gold.exists():
            raise ValueError(f"{path} has no {gold.name} beside it; wanted its scores")
        lines, scores = _lines(path), _lines(gold)
        if len(lines) != len(scores):
            raise ValueError(
                f"{path} has {len(lines)} lines and {gold.name} {len(scores)}; wanted as many"
            )
        pairs = []
        for number, (line, score) in enumerate(zip(lines, scores, strict=True), 1):
            parts = line.split("\t")
            if not score.strip():
                continue
            if len(parts) < 2:
                raise ValueError(f"{path}:{number} has no tab; wanted two sentences")
            pairs.append((_score(gold, number, score), parts[0].strip(), parts[1].strip()))
        found.append(_similarity(path, path.name[len("STS.input.") : -len(".txt")], pairs))
    if not found:
        raise ValueError(f"{folder} has no STS.input.*.txt; wanted a year's folder")
    return found


def read_probing(path: str | Path) -> Classification:
    """A probing task of SentEval: train, validation and test lines in one file.

    The validation lines are left out, because no setting is chosen by them here.

    Raises:
      ValueError: a line of another format, or no line of either kind.
    """
    path = Path(path)
    parts: dict[str, Labelled] = {"tr": [], "va": [], "te": []}
    for number, line in enumerate(_lines(path), 1):
        if not line:
            continue
        columns = line.split("\t")
        if len(columns) != 3 or columns[0] not in parts:
            raise ValueError(f"{path}:{number} is {line[:60]!r}; wanted tr, va or te, label, text")
        parts[columns[0]].append((columns[1], columns[2]))
    return _classification(path, path.stem, parts["tr"], parts["te"])


def read_classes(name: str, files: Mapping[str, str | Path]) -> Classification:
    """MR, CR, SUBJ or MPQA: a file for each class; measured by cross-validation.

    Args:
      name: of the task.
      files: label -> file, such as {"pos": "rt-polarity.pos", "neg": "rt-polarity.neg"}. They are
        read as UTF-8, or as Latin-1 where they are not that.
    """
    labelled = [
        (label, line) for label, path in files.items() for line in _lines(Path(path)) if line
    ]
    return _classification(Path(name), name, labelled, [])


def read_sst(train: str | Path, test: str | Path) -> Classification:
    """SST: sentence, tab, label.

    Raises:
      ValueError: a line without a tab.
    """
    parts = []
    for path in (Path(train), Path(test)):
        rows = []
        for number, line in enumerate(_lines(path), 1):
            text, tab, label = line.rpartition("\t")
            if line and not tab:
                raise ValueError(f"{path}:{number} has no tab; wanted a sentence and a label")
            rows += [(label.strip(), text.strip())] if line else []
        parts.append(rows)
    return _classification(Path(train), "SST", *parts)


def read_trec(train: str | Path, test: str | Path) -> Classification:
    """TREC: "DESC:manner How did ...", of which the label is what stands before the colon.

    Raises:
      ValueError: a line whose first word has no colon.
    """
    parts = []
    for path in (Path(train), Path(test)):
        rows = []
        for number, line in enumerate(_lines(path), 1):
            first, _, text = line.partition(" ")
            if line and ":" not in first:
                raise ValueError(f"{path}:{number} is {line[:60]!r}; wanted LABEL:more and a text")
            rows += [(first.partition(":")[0], text.strip())] if line else []
        parts.append(rows)
    return _classification(Path(train), "TREC", *parts)


def _lines(path: Path) -> list[str]:
    """The lines of a file, which is UTF-8 or Latin-1, without an empty one at its end."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    # Not `splitlines`, which also splits at separators that stand within sentences.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _score(path: Path, number: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}:{number} has the score {text!r}; wanted a number") from None


def _similarity(path: Path, name: str, pairs: Sequence[tuple[float, str, str]]) -> Similarity:
    if not pairs:
        raise ValueError(f"{path} has no pair with a score; wanted some")
    scores, a, b = (list(column) for column in zip(*pairs, strict=True))
    return Similarity(name, a, b, scores)


def _classification(path: Path, name: str, train: Labelled, test: Labelled) -> Classification:
    if len({label for label, _ in train}) < 2:
        raise ValueError(f"{path} has fewer than two labels to learn from; wanted at least 2")
    return Classification(name, train, test)
