"""The notebooks run from top to bottom as they stand, and show what their code shows."""

import base64
import importlib.util
import json
import os
import re
import tomllib
from pathlib import Path

import jax
import pytest

import nvib_jax

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location(
    "execute_notebooks", ROOT / ".ci" / "execute_notebooks.py"
)
assert SPEC is not None
assert SPEC.loader is not None
TOOL = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TOOL)
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def cells(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def outputs_of(path: Path) -> list[dict]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_there_are_five():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestAsItIsKept:
    def test_outputs_are_those_of_the_code(self, path):
        """The tool that runs a notebook leaves a hash of what it ran."""
        notebook = json.loads(path.read_text(encoding="utf-8"))
        kept = notebook["metadata"]["nvib"]["code"]
        again = f"python .ci/execute_notebooks.py colab/{path.name}"
        assert kept == TOOL.code_hash(notebook), f"its code has changed; run {again}"
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))

    def test_pictures_are_there_and_small(self, path):
        pictures = [
            base64.b64decode("".join(output["data"]["image/png"]))
            for output in outputs_of(path)
            if "image/png" in output.get("data", {})
        ]
        drawn = "\n".join(cells(path, "code")).count("plots.")
        assert len(pictures) >= max(3, drawn // 2)
        assert all(picture.startswith(b"\x89PNG") for picture in pictures)
        assert path.stat().st_size < 400_000

    def test_outputs_tell_nothing_of_a_machine(self, path):
        """No folders, no speed, no warnings or errors, no colours of a terminal."""
        for output in outputs_of(path):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output
            text = "".join(output.get("text", [])) + "".join(
                output.get("data", {}).get("text/plain", [])
            )
            found = re.search(
                r"(?<![\w.])/[a-z]+/\S|[A-Z]:\\|tokens/s|Traceback|Warning|\x1b|restart", text
            )
            assert not found, f"{found[0]!r} in {text[:300]!r}"

    def test_install_cell_names_this_version_and_keeps_jax(self, path):
        (install,) = [code for code in cells(path, "code") if "%pip" in code]
        last = install.splitlines()[-1]
        extra = "pretrained" if path.name.startswith("05") else "train"
        wanted = f'"nvib-jax[{extra}]=={nvib_jax.__version__}" "{{jax_there}}"'
        assert last == f"%pip install -q {wanted}"
        names: dict[str, str] = {}
        exec(install.removesuffix(last), names)
        assert names["jax_there"] == f"jax=={jax.__version__}"

    def test_the_device_is_named(self, path):
        """Where pip has replaced a GPU's jax, everything works, slowly."""
        said = "".join("".join(o.get("text", [])) for o in outputs_of(path))
        assert re.search(r"^jax [\d.]+ runs on \w+ \(.+\)$", said, flags=re.MULTILINE)

    def test_badge_is_that_of_the_repository(self, path):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        repository = project["urls"]["Repository"].removeprefix("https://github.com/")
        colab = "https://colab.research.google.com/github"
        badge = f"{BADGE}({colab}/{repository}/blob/main/colab/{path.name})"
        assert badge in cells(path, "markdown")[0]
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        assert badge.replace(BADGE, "[![Open in Colab][badge]]") in readme
        assert BADGE.split("(")[1].rstrip(")]") in readme

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

    # Quick to compile, as the tests are; the fourth asks for four devices where nothing is said.
    devices = "device_count=4" if path.name.startswith("04") else "device_count=1"
    monkeypatch.setenv("XLA_FLAGS", re.sub(r"device_count=\d+", devices, os.environ["XLA_FLAGS"]))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
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


def test_what_a_machine_says_of_itself_is_left_out():
    said = "the run is /tmp/nvib-9c_h/middle\nprepared /root/.cache/nvib_jax/5fb5ed517a158701\n"
    said += "train  100  loss 4.59  kept 0.927  tokens/s 2,727\n"
    left = "the run is nvib-9c_h/middle\nprepared 5fb5ed517a158701\n"
    assert TOOL._bare(said) == left + "train  100  loss 4.59  kept 0.927\n"


@pytest.mark.long
def test_the_tool_keeps_what_a_notebook_shows_and_nothing_of_one_that_fails(tmp_path):
    import nbformat

    path = tmp_path / "small.ipynb"
    code = "from nvib_jax import plots\nprint('the run is /tmp/nvib-1/a')\nprint('b')\n"
    code += "plots.kl_per_dimension([('run', [0.1, 2.5])])"
    good = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbformat.write(good, path)
    TOOL.execute(path)
    kept = json.loads(path.read_text())
    said, shown = kept["cells"][0]["outputs"]
    assert "".join(said["text"]) == "the run is nvib-1/a\nb\n"
    picture = base64.b64decode("".join(shown["data"]["image/png"]))
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 10_000
    assert kept["metadata"]["nvib"]["code"] == TOOL.code_hash(kept)

    good.cells.append(nbformat.v4.new_code_cell("raise ValueError('no')"))
    nbformat.write(good, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="raise ValueError"):
        TOOL.execute(path)
    assert path.read_bytes() == before
