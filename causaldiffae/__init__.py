"""Counterfactual images with causal diffusion autoencoders (CausalDiffAE) and Diff-SCM.

    from causaldiffae import CausalDiffAE

    model = CausalDiffAE.from_pretrained("morphomnist-mini")
    model.counterfactual(model.examples(6), do={"thickness": 4.5}).show()

The names in `__all__` are the public interface. They are imported at first use, so `import causaldiffae` is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
