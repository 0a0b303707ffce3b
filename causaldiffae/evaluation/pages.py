"""HTML pages from the templates beside this module; every value is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(template: str, path: Path, **values: Any) -> Path:
    """Writes a template of this package, filled with `values`, to `path`."""
    loader = PackageLoader("causaldiffae.evaluation")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.get_template(template).render(values), encoding="utf-8")
    return path
