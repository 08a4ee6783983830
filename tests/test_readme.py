"""Python on the pages runs as printed, tables are what was measured, the two commands are there."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join(
    page.read_text(encoding="utf-8")
    for pattern in ("*.md", "configs/*.md", "nvib_jax/*.md", "nvib_jax/*/*.md")
    for page in sorted(ROOT.glob(pattern))
)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGES, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(block):
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "out" in names:
        assert names["out"].shape == (2, 5, 4, 16)
        assert names["kl"].shape == (2,)


def test_blocks_were_found():
    assert len(BLOCKS) == 2
    assert len(BLOCKS[0].strip().splitlines()) <= 12  # the README's


def test_the_two_commands_are_there():
    commands = re.findall(r"^pip install .*$", README, flags=re.MULTILINE)
    assert commands == [
        'pip install -e ".[train]" && nvib train configs/quickstart.py',
        'pip install -e ".[dev]" && pytest',
    ]


TABLES = re.findall(
    r"<!-- nvib bench table (\S+) -->\n(.*?)\n?<!-- end -->", PAGES, flags=re.DOTALL
)


@pytest.mark.parametrize(("path", "printed"), TABLES, ids=[path for path, _ in TABLES])
def test_tables_are_what_was_measured(path, printed):
    from nvib_jax.bench.tables import markdown

    report = json.loads((ROOT / path).read_text(encoding="utf-8"))
    assert printed.strip() == markdown(report).strip()


def test_tables_were_found():
    assert len(TABLES) == 6
    assert len(SLICES) == 1


SLICES = re.findall(r"<!-- slices (\S+) -->\n(.*?)\n?<!-- end -->", PAGES, flags=re.DOTALL)


@pytest.mark.parametrize(("path", "printed"), SLICES, ids=[path for path, _ in SLICES])
def test_slices_are_what_was_compiled(path, printed):
    from nvib_jax.bench.slices import markdown

    records = json.loads((ROOT / path).read_text(encoding="utf-8"))
    assert printed.strip() == markdown(records)


SWEEPS = re.findall(
    r"<!-- nvib sweep table (\S+) (\S+) -->\n(.*?)\n?<!-- end -->", PAGES, flags=re.DOTALL
)


@pytest.mark.parametrize(("path", "columns", "printed"), SWEEPS, ids=[s[0] for s in SWEEPS])
def test_scores_are_what_was_measured(path, columns, printed):
    from nvib_jax.evaluation.table import load_scores, score_table

    runs = load_scores(ROOT / path)
    assert printed.strip() == score_table(runs, columns.split(","), markdown=True)


def test_scores_were_found():
    assert len(SWEEPS) == 1
