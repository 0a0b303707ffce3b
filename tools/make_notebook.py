"""Makes docs/tutorial.ipynb from docs/tutorial.py with jupytext (extra `dev`), without outputs.

python tools/make_notebook.py
"""

from __future__ import annotations

from pathlib import Path

import jupytext
from nbformat import NotebookNode

DOCS = Path(__file__).resolve().parents[1] / "docs"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def make_notebook(script: Path) -> NotebookNode:
    """The cells of a script in percent format; the names of cells count them, so that the result is reproducible."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = NotebookNode(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", NotebookNode()
    return notebook


def text_of(notebook: NotebookNode) -> str:
    """The content of the file."""
    return jupytext.writes(notebook, fmt="ipynb") + "\n"


if __name__ == "__main__":
    (DOCS / "tutorial.ipynb").write_text(text_of(make_notebook(DOCS / "tutorial.py")), encoding="utf-8")
