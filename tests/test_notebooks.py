"""The notebooks run from top to bottom as they stand, in Jupyter's own kernel."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

import nvib_jax

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def cells(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def test_there_are_four():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestAsItIsKept:
    def test_outputs_are_stripped(self, path):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None

    def test_install_cell_names_this_version(self, path):
        install = [code for code in cells(path, "code") if "%pip" in code]
        assert install == [f'%pip install -q "nvib-jax[train]=={nvib_jax.__version__}"']

    def test_badge_is_that_of_the_repository(self, path):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        repository = project["urls"]["Repository"].removeprefix("https://github.com/")
        colab = "https://colab.research.google.com/github"
        badge = f"{BADGE}({colab}/{repository}/blob/main/colab/{path.name})"
        assert badge in cells(path, "markdown")[0]
        assert badge in (ROOT / "README.md").read_text(encoding="utf-8")

    def test_smoke_shortens_training_and_nothing_else(self, path):
        """What depends on it is a number, nowhere a cell or a plot."""
        code = "\n".join(cells(path, "code"))
        for line in re.findall(r".*\b(?:SMOKE|NVIB_SMOKE)\b.*", code):
            named = re.search(r"(SMOKE|STEPS) = .*NVIB_SMOKE", line)
            assert named or re.search(r"\d+ if SMOKE else \w+", line), line


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NVIB_SMOKE", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    said = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "\x1b" not in said  # no colours, no bars
    assert "ERROR" not in said  # a failing %pip goes on
    warned = [o.text for o in outputs if o.get("name") == "stderr" and "Warning" in o.text]
    assert not warned
