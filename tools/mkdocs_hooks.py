"""Pages of the site whose source is not a Markdown file in docs/: README, CHANGELOG, CONTRIBUTING and the tutorial.

The same links have to work on a code host, where README.md links to docs/training.md and a page in docs/ to
../README.md, and on the site, where all pages are in one folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPO = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(\[[^\]]*\]\(|<img src=\")([^)\"\s]+)(\)|\")")


def site_links(text: str) -> str:
    """Markdown whose relative links point to the pages of the site."""

    def target(match: re.Match[str]) -> str:
        path, hash_, anchor = match[2].partition("#")
        path = path.removeprefix("../").removeprefix("docs/")
        path = {**PAGES, "tutorial.py": "tutorial.md"}.get(path, path)
        return f"{match[1]}{path}{hash_}{anchor}{match[3]}"

    return LINK.sub(target, text)


def tutorial_page(script: str) -> str:
    """Markdown of a script in percent format: cells `# %% [markdown]` are text, cells `# %%` are code."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages."""
    for source, page in PAGES.items():
        text = (REPO / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    tutorial = (REPO / "docs" / "tutorial.py").read_text(encoding="utf-8")
    files.append(File.generated(config, "tutorial.md", content=tutorial_page(tutorial)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links of every page as on the site."""
    return site_links(markdown)
