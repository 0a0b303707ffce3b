"""The order of imports, and what modules of the package must not do.

All imports count, at the top of a module, inside functions and under TYPE_CHECKING.
"""

import ast
import sys
from pathlib import Path

import networkx as nx
import pytest
from paths import REPO

PACKAGE = REPO / "causaldiffae"
FILES = sorted(PACKAGE.rglob("*.py"))
LEVELS = [
    {"errors", "nn"},
    {"files", "graphs", "config", "dist_util", "encoder", "unet", "dit", "noise_schedule", "guidance"},
    {"losses", "logger", "resample", "generators", "visualization", "mechanisms"},
    {"gaussian_diffusion", "checkpoints", "datasets"},
    {"scm", "respace", "image_datasets", "predictors", "metrics"},
    {"solvers", "model"},
    {"baselines", "published", "diff_scm", "counterfactual"},
    {"script_util"},
    {"training"},
    {"train_util", "evaluation"},
    {"pretrained", "explorer"},
    {""},
]
"""Modules and folders of the package; each imports from its own level and those above it in this list."""
DATASETS_ORDER = [
    {"variables"},
    {"spec"},
    {"images", "prefetch", "do_text", "captions", "independence"},
    {"image_features", "reference"},
    {"dataset", "label_subsets"},
    {"circuit", "mnist", "morphomnist", "pendulum", "folder"},
    {"registry"},
    {"interventional", "image_input", "folder.check"},
]
NETWORKS = ("nn", "unet", "dit", "encoder")
CAUSAL = {"graphs", "scm", "model", "counterfactual", "datasets", "generators", "config"}
PAGE = {"explorer.page", "explorer.server"}
"""The only modules that import gradio and its server, inside their functions."""
MAX_TOP_LEVEL_FILES, MAX_LINES = 25, 400


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def absolute_imports(path: Path, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports; with `top_level`, only those that run when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()

    def visit(node: ast.AST) -> None:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if top_level and (inside or typing_only):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; this package writes its name"
            module = node.module or ""
            found.add(module)
            if module.startswith("causaldiffae"):
                found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def own_imports(name: str) -> set[str]:
    """Modules of this package that a module of it imports; a folder's name only where its __init__ has code."""
    stripped = {given.removeprefix("causaldiffae.") for given in absolute_imports(MODULES[name])}
    return {given for given in stripped & MODULES.keys() if given and given != name}


GRAPH = nx.DiGraph([(name, imported) for name in MODULES for imported in own_imports(name)])


def unit(name: str) -> str:
    """The folder or the top-level module that a module belongs to."""
    return name.split(".")[0]


def level(name: str, levels: list[set[str]]) -> int:
    return next(i for i, names in enumerate(levels) if name in names)


def test_every_module_has_a_level() -> None:
    assert {unit(name) for name in MODULES} == set().union(*LEVELS)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, imported in GRAPH.edges
        if level(unit(imported), LEVELS) > level(unit(name), LEVELS)
    ]
    assert not wrong


def test_data_sets_import_one_way() -> None:
    def place(name: str) -> int:
        inner = name.removeprefix("datasets.")
        return level(inner if inner == "folder.check" else inner.split(".")[0], DATASETS_ORDER)

    inside = [name for name in MODULES if name.startswith("datasets.")]
    wrong = [f"{a} imports {b}" for a, b in GRAPH.subgraph(inside).edges if place(b) > place(a)]
    assert not wrong


def test_there_are_no_cycles() -> None:
    assert not list(nx.simple_cycles(GRAPH))
    folders = nx.DiGraph((unit(a), unit(b)) for a, b in GRAPH.edges if unit(a) != unit(b))
    assert not list(nx.simple_cycles(folders))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_know_no_graph_and_no_diffusion(name: str) -> None:
    reached = {unit(each) for each in nx.descendants(GRAPH, name)}
    assert not reached & (CAUSAL | {"gaussian_diffusion", "respace", "losses"})


@pytest.mark.parametrize("name", ["gaussian_diffusion", "respace", "solvers"])
def test_diffusion_knows_no_causality(name: str) -> None:
    assert not {unit(each) for each in nx.descendants(GRAPH, name)} & CAUSAL


def test_only_the_page_imports_gradio() -> None:
    web = {"gradio", "fastapi", "starlette", "uvicorn"}
    for name, path in MODULES.items():
        assert not {given.split(".")[0] for given in absolute_imports(path, top_level=True)} & web, name
        if name not in PAGE:
            assert not {given.split(".")[0] for given in absolute_imports(path)} & web, name


def test_the_method_is_in_the_file_names() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_TOP_LEVEL_FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short_quiet_and_described(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    tree = ast.parse(text)
    assert not text.strip() or ast.get_docstring(tree)
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "print" not in calls, "the package does not print; use the logger"
    assert not {"eval", "exec"} & calls
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)) or path.name == "dist_util.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    top_level = {name.split(".")[0] for name in absolute_imports(path, top_level=True)}
    assert not top_level & {"mpi4py", "tensorboard", "matplotlib", "skimage", "mujoco", "scripts", "tests"}


def test_nothing_imports_the_scripts() -> None:
    scripts = {path.stem for path in (REPO / "scripts").glob("*.py")}
    for path in FILES:
        assert not {name.split(".")[0] for name in absolute_imports(path)} & scripts


def test_only_the_standard_library_and_declared_packages() -> None:
    text = (REPO / "setup.py").read_text(encoding="utf-8")
    distributions = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    for path in FILES:
        top = {name.split(".")[0] for name in absolute_imports(path)} - {"causaldiffae", "__future__"}
        for name in top - sys.stdlib_module_names:
            assert f'"{distributions.get(name, name)}' in text, (
                f"{path.name} imports {name}, setup.py does not require it"
            )
