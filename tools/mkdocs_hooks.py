"""MkDocs hooks for pages that are not Markdown files in docs/: README, CHANGELOG, CONTRIBUTING and the tutorial.

Links are written for a code host, where README.md links to docs/training.md and pages in docs/ link to ../README.md.
On the site all pages are in one folder, so links are rewritten.
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
    """Rewrites relative links for the site."""

    def target(match: re.Match[str]) -> str:
        path, hash_, anchor = match[2].partition("#")
        path = path.removeprefix("../").removeprefix("docs/")
        path = {**PAGES, "tutorial.py": "tutorial.md"}.get(path, path)
        return f"{match[1]}{path}{hash_}{anchor}{match[3]}"

    return LINK.sub(target, text)


def tutorial_page(script: str) -> str:
    """Converts a script in percent format to Markdown: cells `# %% [markdown]` are text, cells `# %%` code."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        elif body.strip():
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""
    for source, page in PAGES.items():
        text = (REPO / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    tutorial = (REPO / "docs" / "tutorial.py").read_text(encoding="utf-8")
    files.append(File.generated(config, "tutorial.md", content=tutorial_page(tutorial)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrites the links of a page."""
    return site_links(markdown)
