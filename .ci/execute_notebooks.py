"""Run the notebooks of `colab/` and keep what they show, so that the web shows it too.

    python .ci/execute_notebooks.py                  # all five; README.md says how long
    python .ci/execute_notebooks.py colab/01_*.ipynb

Each runs from top to bottom in a kernel of this Python, in an empty folder. Stored are pictures of
few colours, the text of results and what was printed, but for what a machine says of itself: its
folders, its speed, what pip says. The notebook's metadata get a hash of its code cells, which
`tests/test_notebooks.py` compares with the code as it is. Nothing is written where a cell fails.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COLOURS, FEW, LARGE = 192, 32, 15_000  # a picture of more bytes than that has few colours
OF_A_MACHINE = (
    (re.compile(r" +tokens/s [\d,.]+"), ""),
    (re.compile(r"/\S*/(?=nvib|[0-9a-f]{16}\b)"), ""),
)


def code_hash(notebook: dict) -> str:
    """Of all code cells, in order."""
    digest = hashlib.sha256()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            digest.update("".join(cell["source"]).encode() + b"\0")
    return digest.hexdigest()


def execute(path: Path) -> None:
    """Run a notebook and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NVIB_SMOKE")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="nvib-") as place:
        client = NotebookClient(
            notebook,
            timeout=3600,
            kernel_name="python3",
            coalesce_streams=True,
            resources={"metadata": {"path": place}},
        )
        client.execute(env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            said = "".join(output.get("text", "") for output in cell.outputs)
            if "%pip" in cell.source and "ERROR" in said:  # pip's errors do not end a cell
                raise RuntimeError(f"{path.name}: pip could not install: {said}")
            cell.metadata.pop("execution", None)  # when it ran
            cell.outputs = [] if "%pip" in cell.source else list(map(_small, cell.outputs))
    notebook.metadata["nvib"] = {"code": code_hash(notebook)}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def _small(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output with a small picture, and without what is a machine's own."""
    if output.output_type == "stream":
        output.text = _bare(output.text)
    data = output.get("data", {})
    if "text/plain" in data:
        data["text/plain"] = "a figure" if "image/png" in data else _bare(data["text/plain"])
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        paper.alpha_composite(picture)
        found = _png(paper, COLOURS)
        found = _png(paper, FEW) if len(found) > LARGE else found
        data["image/png"] = base64.b64encode(found).decode()
    return output


def _png(picture: Image.Image, colours: int) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").quantize(colours).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _bare(text: str) -> str:
    for pattern, stead in OF_A_MACHINE:
        text = pattern.sub(stead, text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", nargs="*", type=Path, help="none means all")
    for one in parser.parse_args().notebook or sorted((ROOT / "colab").glob("*.ipynb")):
        execute(one)
