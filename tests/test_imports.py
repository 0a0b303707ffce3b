"""Who may import whom, and what the package must not do."""

import ast
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "causaldiffae"
FILES = sorted(PACKAGE.rglob("*.py"))
NETWORKS = ("nn", "unet", "dit", "encoder")
# What each step of the way may rest on, directly: nn -> unet | encoder | scm -> model -> counterfactual.
ALLOWED = {
    "errors": set(),
    "nn": {"errors"},
    "unet": {"errors", "nn"},
    "dit": {"errors", "nn"},
    "dit_files": {"errors", "checkpoint", "dit", "safe_files"},
    "encoder": {"errors", "nn"},
    "graphs": {"errors"},
    "scm": {"errors", "nn", "graphs"},
    "losses": {"errors", "nn", "encoder"},
    "gaussian_diffusion": {"errors", "nn", "losses"},
    "respace": {"errors", "gaussian_diffusion"},
    "resample": {"errors", "dist_util"},
    "guidance": {"errors"},
    "supervision": {"errors", "image_datasets", "safe_files"},
    "baselines.conditional": {"errors", "config", "image_datasets", "model", "scm", "unet"},
    "baselines.causalvae": {"errors", "config", "encoder", "image_datasets", "model", "nn", "scm"},
    "noise_levels": {"errors", "gaussian_diffusion"},
    "noised_predictor": {"errors", "checkpoint", "config", "image_datasets", "unet"},
    "diff_scm": {
        "errors",
        "config",
        "dit",
        "image_datasets",
        "model",
        "nn",
        "noise_levels",
        "noised_predictor",
        "scm",
        "unet",
    },
    "latent_space": {"errors"},
    "adm_files": {"errors", "checkpoint", "config", "image_datasets", "noised_predictor", "safe_files", "unet"},
    "counterfactual": {"errors", "gaussian_diffusion", "guidance", "image_datasets", "noise_levels", "scm", "solvers"},
    "solvers": {"errors", "gaussian_diffusion", "respace", "nn"},
    "config": {"errors"},
    "dot_files": {"errors"},
    "yaml_files": {"errors"},
    "safe_files": {"errors"},
    "safe_images": {"errors"},
    "pickled_bytes": {"errors"},
    "npz_files": {"errors", "pickled_bytes", "safe_files"},
    "state_tree": {"errors"},
    "benchmark_results": {"errors"},
    "pictures": {"errors"},
    "graph_picture": {"graphs"},
    "advice": {"config", "graphs", "image_datasets"},
    "model_folders": {"errors", "checkpoint", "safe_files"},
    "image_input": {"errors", "folders.image_files", "image_datasets", "safe_files"},
    "prior": {"image_datasets", "scm"},
    "results": {"evaluation", "image_datasets", "pictures"},
    "explorer.graph_svg": {"graph_picture", "graphs"},
    "explorer.uploads": {
        *("errors", "explorer.studio", "folders.image_files", "image_datasets", "image_input"),
        *("safe_files", "safe_images"),
    },
    "stopping": set(),
    "run_lock": {"errors"},
    "skipped_steps": {"errors"},
    "checkpoint_writer": {"errors", "checkpoint"},
    "remote_checkpoints": {"errors", "checkpoint", "folders.storage", "safe_files"},
    "resuming": {
        "errors",
        "checkpoint",
        "config",
        "dist_util",
        "folders.storage",
        "image_datasets",
        "remote_checkpoints",
    },
    "step_draws": {"config", "dist_util", "model", "resample"},
    "training_pictures": {"diff_scm", "config", "counterfactual", "image_datasets", "pictures", "script_util"},
}
PAGE = {"explorer.page", "explorer.server"}
"""The only modules that know gradio and its server, and these only inside their functions."""
CAUSAL = {"graphs", "scm", "model", "counterfactual", "image_datasets", "generators", "config"}
ORDER = ["nn", "unet", "encoder", "scm", "model", "counterfactual", "train_util"]
PLANNED = {"graphs", "scm", "encoder", "nn", "unet", "gaussian_diffusion", "respace", "resample", "losses", "model"}
PLANNED |= {
    "counterfactual",
    "image_datasets",
    "config",
    "script_util",
    "train_util",
    "checkpoint",
    "dist_util",
    "logger",
    "solvers",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def absolute_imports(path: Path, top_level: bool = False) -> set[str]:
    """Dotted names that a file imports; with `top_level`, only those that run when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()

    def visit(node: ast.AST) -> None:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if (inside and top_level) or typing_only:
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


MODULES = {module_name(path): path for path in FILES}


def own_imports(name: str, top_level: bool = True) -> set[str]:
    """Modules of this package that a module of it imports."""
    names = absolute_imports(MODULES[name], top_level)
    stripped = {given.removeprefix("causaldiffae.") for given in names if given.startswith("causaldiffae.")}
    return (stripped & MODULES.keys()) - {""}


def closure(name: str) -> set[str]:
    found, open_ends = set(), {name}
    while open_ends:
        current = open_ends.pop()
        new = own_imports(current) - found
        found |= new
        open_ends |= new
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_layers_rest_on_what_they_may(name: str) -> None:
    assert own_imports(name, top_level=False) <= ALLOWED[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_know_no_graph_and_no_diffusion(name: str) -> None:
    reached = closure(name)
    assert not reached & (CAUSAL | {"gaussian_diffusion", "respace", "losses"})


@pytest.mark.parametrize("name", ["gaussian_diffusion", "respace", "solvers"])
def test_diffusion_knows_no_causality(name: str) -> None:
    assert not closure(name) & CAUSAL


def test_imports_go_one_way() -> None:
    for i, name in enumerate(ORDER):
        later = set(ORDER[i + 1 :])
        assert not closure(name) & later, f"{name} reaches {closure(name) & later}"


def test_only_the_page_knows_gradio() -> None:
    web = {"gradio", "fastapi", "starlette", "uvicorn"}
    for name, path in MODULES.items():
        assert not {given.split(".")[0] for given in absolute_imports(path, top_level=True)} & web, name
        if name not in PAGE:
            assert not {given.split(".")[0] for given in absolute_imports(path)} & web, name


@pytest.mark.parametrize("name", sorted(MODULES), ids=lambda name: name or "__init__")
def test_there_are_no_cycles(name: str) -> None:
    assert name not in closure(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_keep_quiet_and_light(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "print" not in calls, "the package does not print; use the logger"
    assert not {"eval", "exec"} & calls
    top_level = {name.split(".")[0] for name in absolute_imports(path, top_level=True)}
    heavy = {"mpi4py", "tensorboard", "scripts", "tests"}
    if path.parent.name != "generators":  # these draw with matplotlib, and are themselves imported where needed
        heavy |= {"matplotlib", "skimage"}
    assert not top_level & heavy
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)) or path.name == "dist_util.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", sorted(PLANNED))
def test_the_method_is_in_the_file_names(name: str) -> None:
    assert (PACKAGE / f"{name}.py").is_file()


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
