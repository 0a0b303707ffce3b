"""What the documents name exists: files, functions, flags; commands parse; the tutorial runs."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO

from causaldiffae.config import COMPONENTS, RECIPES
from causaldiffae.evaluation.image_test import TestConfig as Settings

DOCS = [
    *sorted(p for p in (REPO / "docs").glob("*.md") if p.name != "fuzzing.md"),
    *sorted((REPO / "docs").glob("*.py")),
]
CODE = re.compile(r"`([^`\n]+)`")
THEIRS = {"image_causaldae_train.py", "model014000.pt", "ema_0.9999_014000.pt"}  # of the published code
EXTENSIONS = (".py", ".sh", ".yaml", ".md", ".png", ".txt")


def spans(path: Path) -> list[str]:
    return CODE.findall(path.read_text(encoding="utf-8"))


def known_flags() -> set[str]:
    """Every field of a class `...Config`, whose fields are flags, and every flag that a script adds to its parser."""
    flags = {field.name for part in [*COMPONENTS.values(), Settings] for field in dataclasses.fields(part)} | {"help"}
    for path in (
        path for folder in ("scripts", "classifiers", "causaldiffae") for path in (REPO / folder).glob("*.py")
    ):
        text = path.read_text(encoding="utf-8")
        flags |= set(re.findall(r'"--([a-z_]+)"', text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                flags |= {ast.unparse(each.target) for each in node.body if isinstance(each, ast.AnnAssign)}
    return flags


def defined_names() -> set[str]:
    """`name`, and `Class.method`, of everything that is defined in the package."""
    names: set[str] = set()
    for path in (REPO / "causaldiffae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_files_exist(path: Path) -> None:
    for span in spans(path):
        for word in re.split(r"[\s,;]+", span):
            name = word.strip("'\"()").removeprefix("./")
            if not name.endswith(EXTENSIONS) or name in THEIRS or "/" not in name or "*" in name:
                continue
            assert (REPO / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_flags_exist(path: Path) -> None:
    known = known_flags()
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z_]+)", "\n".join(spans(path))):
        if flag not in {"to"}:  # of jupytext
            assert flag in known, f"{path.name} names --{flag}"


@pytest.mark.parametrize("path", [path for path in DOCS if path.suffix == ".md"], ids=lambda path: path.name)
def test_functions_exist(path: Path) -> None:
    """CamelCase names, Class.method, and snake_case names in method.md are defined somewhere in the package."""
    defined = defined_names()
    for span in spans(path):
        looks = re.fullmatch(r"[A-Z][A-Za-z]+(?:\.[a-z_]+)?", span) or (
            path.name == "method.md" and re.fullmatch(r"[a-z]+_[a-z_]+", span)
        )
        if looks:
            assert span in defined, f"{path.name} names {span}"


def test_functions_are_where_method_md_says() -> None:
    text = (REPO / "docs" / "method.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`([A-Za-z_.]+)` in `(causaldiffae/[\w/]+\.py)`", text)
    assert len(pairs) >= 10
    for name, file in pairs:
        tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(name.split(".")) <= own, f"{name} is not in {file}"


def test_values_of_the_recipe_are_those_the_table_marks() -> None:
    """Where an R stands, --recipe reference says the same in training or in testing."""
    from causaldiffae.evaluation.image_test import RECIPES as TEST_RECIPES

    recipe = {**RECIPES["reference"], **TEST_RECIPES["reference"]}
    text = (REPO / "docs" / "from_the_reference.md").read_text(encoding="utf-8")
    marked = [line for line in text.splitlines() if "(R)" in line]
    found = {flag: value for line in marked for flag, value in re.findall(r"--([a-z_]+) ([\w.]+)`", line)}
    found.pop("solver", None)
    found.pop("steps", None)
    assert found == {key: str(recipe[key]) for key in found} and len(found) == 4


COMMANDS = sorted(
    {
        match
        for path in [*DOCS, REPO / "README.md"]
        for match in re.findall(r"python ((?:scripts|classifiers|examples)/\w+\.py)", path.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize("script", COMMANDS)
def test_commands_take_help(script: str) -> None:
    result = subprocess.run(
        [sys.executable, str(REPO / script), "--help"], capture_output=True, text=True, timeout=250, check=False
    )
    assert result.returncode == 0 and "usage" in result.stdout.lower(), result.stderr[-500:]


@pytest.mark.timeout(600)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """Every cell, as a script; and it is what the text promises: cells in percent style."""
    path = REPO / "docs" / "tutorial.py"
    assert path.read_text(encoding="utf-8").count("# %%") >= 12
    command = [sys.executable, "-W", "error::UserWarning", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=580, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "read as digit [2]" in result.stdout
    written = {each.name for each in (tmp_path / "tutorial_out").iterdir()}
    assert {"angle.png", "samples.png", "thick.png", "my_digits"} <= written
