"""Diffusion processes over a subset of the steps of another.

A `SpacedDiffusion` keeps the alpha-bars of the chosen steps, so that a network trained with T steps can be sampled with
fewer; the network still sees the original step indices (Nichol and Dhariwal, 2021, arXiv 2102.09672, section 4).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.noise_schedule import with_positive_end


def space_timesteps(num_timesteps: int, section_counts: str | Sequence[int]) -> set[int]:
    """Chooses steps of a longer process.

    Args:
        num_timesteps: T of the original process.
        section_counts: numbers of steps in equal sections, as a list or "10,10,25"; or "ddimN" for N steps at a fixed
            stride (Song et al., 2021).

    Raises:
        InputError: if no integer stride gives N steps, or a count exceeds the steps of its section.
    """
    if isinstance(section_counts, str):
        if section_counts.startswith("ddim"):
            wanted = _positive_integer(section_counts[len("ddim") :], section_counts)
            for skip in range(1, num_timesteps + 1):
                if len(range(0, num_timesteps, skip)) == wanted:
                    return set(range(0, num_timesteps, skip))
            raise InputError(f"timestep_respacing: no integer stride over {num_timesteps} steps gives {wanted} steps")
        section_counts = [_positive_integer(part, section_counts) for part in section_counts.split(",")]
    if not section_counts:
        raise InputError("timestep_respacing: expected counts like '10,10,25', or 'ddim50', got none")
    base, extra = divmod(num_timesteps, len(section_counts))
    start, chosen = 0, []
    for i, count in enumerate(section_counts):
        size = base + (i < extra)
        if not 1 <= count <= size:
            raise InputError(f"timestep_respacing: expected 1 to {size} steps in a section, got {count}")
        stride = 1.0 if count == 1 else (size - 1) / (count - 1)
        # Accumulated, not multiplied, as in guided-diffusion, so that rounding agrees.
        position = 0.0
        for _ in range(count):
            chosen.append(start + round(position))
            position += stride
        start += size
    return set(chosen)


def _positive_integer(text: str, whole: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise InputError(f"timestep_respacing: expected counts like '10,10,25', or 'ddim50', got {whole!r}")
    return value


class SpacedDiffusion(GaussianDiffusion):
    """A diffusion process that skips steps of a base process.

    Args:
        use_timesteps: indices into the base process to keep.
        betas: the base process's betas; other arguments as `GaussianDiffusion`.
    """

    def __init__(self, use_timesteps: Collection[int], **kwargs: Any) -> None:
        base = np.asarray(kwargs["betas"], dtype=np.float64)
        kept = np.array(sorted(set(use_timesteps)), dtype=np.int64)
        if not len(kept) or kept[0] < 0 or kept[-1] >= len(base):
            raise InputError(f"use_timesteps: expected at least one index between 0 and {len(base) - 1}")
        alphas_cumprod = np.cumprod(1.0 - base)[kept]
        betas = 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
        super().__init__(**{**kwargs, "betas": betas})
        self.timestep_map = kept
        self.original_num_steps = len(base)
        self.base_alphas_cumprod = with_positive_end(np.cumprod(1.0 - base))
