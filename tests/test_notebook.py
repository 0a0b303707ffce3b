"""The tutorial's notebook is that of its script, and runs."""

import os
from pathlib import Path

import pytest
from paths import REPO

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra dev)")
pytest.importorskip("jupytext", reason="jupytext is not installed (extra dev)")
NOTEBOOK, SCRIPT = REPO / "docs" / "tutorial.ipynb", REPO / "docs" / "tutorial.py"


def test_the_notebook_is_up_to_date() -> None:
    from make_notebook import make_notebook, text_of

    assert NOTEBOOK.read_text(encoding="utf-8") == text_of(make_notebook(SCRIPT)), "run tools/make_notebook.py"


def test_the_notebook_holds_the_code_of_the_script() -> None:
    """Read independently of the tool: every line of code is in a code cell, in order."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines() if line]
    script = SCRIPT.read_text(encoding="utf-8").splitlines()
    assert code == [line for line in script if line and not line.startswith("#")]
    assert cells[0].source.startswith("# Counterfactual images in Python") and len(cells) >= 14
    assert all(not cell.outputs for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra dev)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra dev)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = [output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]
    assert any("read as digit [2]" in text for text in texts)
    assert (tmp_path / "tutorial_out" / "thick.png").is_file()
