"""Counterfactual images with causal diffusion autoencoders (CausalDiffAE) and Diff-SCM.

    from causaldiffae import CausalDiffAE

    model = CausalDiffAE.from_pretrained("morphomnist-mini")
    model.counterfactual(model.examples(6), do={"thickness": 4.5}).show()

The names in `__all__` are the public interface. They are imported at first use, so `import causaldiffae` is cheap.
Modules of earlier versions that have moved are imported under their old names too, with a deprecation warning.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from causaldiffae.evaluation.counterfactuals import Counterfactuals
    from causaldiffae.pretrained import CausalDiffAE, CounterfactualModel

__all__ = ["CausalDiffAE", "CounterfactualModel", "Counterfactuals"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'causaldiffae' has no attribute {name!r}")
    from causaldiffae import pretrained

    return getattr(pretrained, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


MOVED: Final = {
    **{f"{name}": f"checkpoints.{name}" for name in ("checkpoint", "model_card", "model_folders", "state_tree")},
    **{"checkpoint_writer": "checkpoints.writer", "remote_checkpoints": "checkpoints.remote"},
    **{"circuit_files": "datasets.circuit", "mnist_files": "datasets.mnist", "examples": "datasets.registry"},
    **{"image_input": "datasets.image_input", "interventional_data": "datasets.interventional"},
    **{"supervision": "datasets.label_subsets", "graph_files": "datasets.folder.graph_files"},
    **{"folders": "datasets.folder", "folders.storage": "files.storage", "folders.reading_rules": "datasets.variables"},
    **{
        f"folders.{name}": f"datasets.folder.{name}"
        for name in ("image_cache", "image_files", "label_table", "problems")
    },
    **{"folders.folder_check": "datasets.folder.check", "folders.folder_description": "datasets.folder.description"},
    **{"folders.folder_reader": "datasets.folder.image_folder", "folders.variable_kinds": "datasets.variables"},
    **{"inference_util": "evaluation.settings", "imagenet": "evaluation.imagenet", "run_plots": "evaluation.run_page"},
    **{f"benchmark_{name}": f"evaluation.{name}" for name in ("protocol", "run", "scores", "tables")},
    **{"benchmark_results": "evaluation.results_file", "report_page": "evaluation.report"},
    **{name: f"evaluation.{name}" for name in ("scale_sweep", "step_sweep", "speed")},
    **{"results": "evaluation.counterfactuals", "explorer.shelf": "explorer.registry"},
    **{"explorer.studio": "explorer.session", "safe_files": "files.reading", "safe_images": "files.images"},
    **{
        "dot_files": "files.dot",
        "npz_files": "files.npz",
        "yaml_files": "files.yaml",
        "pickled_bytes": "files.pickles",
    },
    **{"workers": "generators.workers", "noise_levels": "noise_schedule", "prior": "scm"},
    **{"noised_predictor": "predictors.noised_predictor", "predictor_training": "training.predictor"},
    **{"noised_training": "training.noised_predictor"},
}
"""Old and new names of modules, see CHANGELOG.md."""


class _MovedModules(MetaPathFinder, Loader):
    """Imports a module that has moved under its old name."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, moved = name.partition(".")
        return ModuleSpec(name, self) if package == __name__ and moved in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = f"{__name__}.{MOVED[module.__name__.removeprefix(f'{__name__}.')]}"
        warnings.warn(f"{module.__name__}: deprecated, use {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


sys.meta_path.insert(0, _MovedModules())  # before that of the package that `folders` has become
