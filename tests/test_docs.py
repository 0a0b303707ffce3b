"""What the documents name exists: files, functions, flags, links; prose is wrapped; the tutorial runs."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from paths import REPO
from test_imports import LEVELS

from causaldiffae.config import RECIPES

PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    REPO / "CHANGELOG.md",
    *sorted((REPO / "docs").glob("*.md")),
]
DOCS = [*(path for path in PAGES if path.name != "CHANGELOG.md"), REPO / "docs" / "tutorial.py"]
"""The documents of the present state; the change log names what is gone."""
MARKDOWN = [path for path in DOCS if path.suffix == ".md"]
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?:\]\(|<img src=\")([^)\"\s]+)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
THEIRS = {"image_causaldae_train.py", "model014000.pt", "ema_0.9999_014000.pt"}  # of the published code
OTHER_FLAGS = {"to", "signal", "mpi"}  # jupytext, sbatch, srun
EXTENSIONS = (".py", ".sh", ".yaml", ".md", ".png", ".txt")
WIDTH, MAX_README_LINES, MAX_README_WORDS = 100, 200, 1500


def name(path: Path) -> str:
    return path.name


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def spans(path: Path) -> list[str]:
    return CODE.findall(FENCE.sub("", text_of(path)))


@cache
def known_flags() -> set[str]:
    """Every field of a class `...Config`, `...Settings` or `...Training`, every flag of a parser, and keys of FLAGS."""
    flags = {"help"}
    folders = ("scripts", "classifiers", "causaldiffae", "tools")
    for path in (path for folder in folders for path in (REPO / folder).rglob("*.py")):
        text = text_of(path)
        flags |= set(re.findall(r'"--([a-z0-9_]+)"', text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Settings", "Training")):
                flags |= {ast.unparse(each.target) for each in node.body if isinstance(each, ast.AnnAssign)}
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLAGS":
                flags |= set(ast.literal_eval(node.value))
    return flags


@cache
def defined_names() -> set[str]:
    """`name`, and `Class.method`, of everything that is defined in the package."""
    names: set[str] = set()
    for path in (REPO / "causaldiffae").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return names


def headings(path: Path) -> set[str]:
    """The anchors of a page, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_files_exist(path: Path) -> None:
    """A file with a folder, from the root or from the package; a Python file by its bare name, anywhere."""
    anywhere = {each.name for each in REPO.rglob("*.py")}
    for span in spans(path):
        for word in re.split(r"[\s,;]+", span):
            file = word.strip("'\"()").removeprefix("./")
            if not file.endswith(EXTENSIONS) or file in THEIRS or re.search(r"[*{]|NAME|SIZE|my_", file):
                continue
            if "/" in file:
                assert (REPO / file).exists() or (REPO / "causaldiffae" / file).exists(), f"{path.name} names {file}"
            elif file.endswith(".py"):
                assert file in anywhere, f"{path.name} names {file}"


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_flags_exist(path: Path) -> None:
    found = re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)(?![\w-])", "\n".join(spans(path)))
    assert not set(found) - known_flags() - OTHER_FLAGS


@pytest.mark.parametrize("path", MARKDOWN, ids=name)
def test_functions_exist(path: Path) -> None:
    """CamelCase names, Class.method, and snake_case names in method.md are defined somewhere in the package."""
    others = {"DiTTransformer2DModel", "AutoencoderKL", "AutoencoderTiny"}  # of diffusers
    for span in spans(path):
        looks = re.fullmatch(r"[A-Z][a-z]+[A-Z]\w*(?:\.[a-z_]+)?", span) or (
            path.name == "method.md" and re.fullmatch(r"[a-z]+_[a-z_]+", span)
        )
        if looks and span not in others:
            assert span in defined_names(), f"{path.name} names {span}"


def test_functions_are_where_method_md_says() -> None:
    pairs = re.findall(r"`([A-Za-z_.]+)` in `(causaldiffae/[\w/]+\.py)`", text_of(REPO / "docs" / "method.md"))
    assert len(pairs) >= 20
    for function, file in pairs:
        tree = ast.parse(text_of(REPO / file))
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(function.split(".")) <= own, f"{function} is not in {file}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_work_on_a_code_host(path: Path) -> None:
    """Files exist relative to the page, anchors among the headings; `mkdocs build --strict` checks the site."""
    for link in LINK.findall(FENCE.sub("", text_of(path))):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), f"{path.name} links to {link}"
        assert not anchor or anchor in headings(target), f"{path.name} links to {link}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_prose_is_wrapped(path: Path) -> None:
    prose = [line for line in FENCE.sub("", text_of(path)).splitlines() if not line.startswith(("|", "!["))]
    assert not [line for line in prose if len(line) > WIDTH and not LINK.search(line)]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_blocks_have_a_language(path: Path) -> None:
    """So that the commands among them are found (tests/scripts/test_documented_commands.py)."""
    fences = re.findall(r"^```(\w*)$", text_of(path), re.MULTILINE)
    assert all(fences[::2]) and not any(fences[1::2])
    assert path.name == "api.md" or not re.search(r"\n\n {4}", FENCE.sub("", text_of(path))), "an indented block"


def test_the_readme_is_short_and_starts_with_what_to_do() -> None:
    text = text_of(REPO / "README.md")
    assert text.count("\n") <= MAX_README_LINES and len(text.split()) <= MAX_README_WORDS
    first_screen = "\n".join(text.splitlines()[:25])
    for needed in ("docs/counterfactuals.png", "demo.sh", "explore.sh", "train_", "from_pretrained", "arxiv.org"):
        assert needed in first_screen


def test_the_architecture_names_every_module_of_the_top_level_and_every_folder() -> None:
    named = set(spans(REPO / "docs" / "architecture.md"))
    package = REPO / "causaldiffae"
    assert {path.name for path in package.glob("*.py")} <= named
    assert {f"{path.parent.name}/" for path in package.glob("*/__init__.py")} <= named


def test_the_architecture_has_the_order_of_imports() -> None:
    rows = re.findall(r"^\| \d+ \| (`.*) \|$", text_of(REPO / "docs" / "architecture.md"), re.MULTILINE)
    modules = [{span.strip("/").replace("causaldiffae", "") for span in CODE.findall(row)} for row in rows]
    assert modules == LEVELS


def test_values_of_the_recipe_are_those_the_table_marks() -> None:
    """Where an R stands, --recipe reference says the same in training or in testing."""
    from causaldiffae.evaluation.settings import RECIPES as TEST_RECIPES

    recipe = {**RECIPES["reference"], **TEST_RECIPES["reference"]}
    marked = [line for line in text_of(REPO / "docs" / "from_the_reference.md").splitlines() if "(R)" in line]
    found = {flag: value for line in marked for flag, value in re.findall(r"--([a-z_]+) ([\w.]+)`", line)}
    found.pop("solver", None)
    found.pop("steps", None)
    assert found == {key: str(recipe[key]) for key in found} and len(found) == 4


COMMANDS = sorted(
    {
        match
        for path in DOCS
        for match in re.findall(r"python ((?:scripts|classifiers|examples)/\w+\.py)", text_of(path))
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
    """Every cell, as a script; and it has cells in percent style."""
    path = REPO / "docs" / "tutorial.py"
    assert text_of(path).count("# %%") >= 12
    command = [sys.executable, "-W", "error::UserWarning", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=580, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "read as digit [2]" in result.stdout
    written = {each.name for each in (tmp_path / "tutorial_out").iterdir()}
    assert {"angle.png", "samples.png", "thick.png", "my_digits"} <= written
