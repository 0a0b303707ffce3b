"""Responses of the pictures while a model trains: previews, the best step, and stopping when they are good enough.

With `train_until` a run ends when the pictures show that share of the requested change of every variable, or when the
mean share no longer rises, and the weights of the best step are kept in the model folder RUN/best. The measurements
belong to the state of the run: a resumed run stops where the uninterrupted one does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.checkpoints.folder_layout import BEST
from causaldiffae.config import Config
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.published.autoencoder import LatentSpace
from causaldiffae.script_util import LoadedModel, Model, describe_checkpoint
from causaldiffae.training.previews import can_intervene, draw_preview
from causaldiffae.training.responses import (
    HARDLY,
    PATIENCE,
    Reader,
    Response,
    find_reader,
    mean_share,
    measure_responses,
    percent,
    stalled,
    write_responses,
)


class Measurement(NamedTuple):
    """Mean and least share of the variables at a step, see `mean_share`."""

    step: int
    mean: float
    least: float


class ResponseTracker:
    """Measures responses while a model trains. All calls must be about the same model and data; weights may change.

    Args:
        label_predictor: as in `find_reader`.
        say: prints a line.
        until: share of the requested change of every variable at which training stops; 0 for never.
        codec: autoencoder of a model in latent space.

    Attributes:
        latest: the last responses.
        history: all measurements of the run, in order.
    """

    def __init__(
        self,
        label_predictor: str,
        say: Callable[[str], None],
        until: float = 0.0,
        codec: LatentSpace | None = None,
    ) -> None:
        self.label_predictor, self.say, self.until, self.codec = label_predictor, say, until, codec
        self.latest: dict[str, Response] = {}
        self.history: list[Measurement] = []
        self._reader: Reader | None = None
        self._reader_errors: dict[str, np.ndarray | None] = {}

    def preview(self, model: Model, config: Config, test: ImageData, device: torch.device) -> np.ndarray:
        """Draws a preview with captions, see `draw_preview`."""
        reader = self._find_reader(model, config, test.spec)
        read = None if reader is None else reader.read
        return draw_preview(model, config.diffusion, test, device, read, self.codec)

    def _find_reader(self, model: Model, config: Config, spec: DatasetSpec) -> Reader | None:
        if self._reader is None and can_intervene(model):
            engine = self._engine(model, config, spec)
            self._reader = find_reader(spec, engine, self.label_predictor)
        return self._reader

    def _engine(
        self, model: Model, config: Config, spec: DatasetSpec, autocast: torch.dtype | None = None
    ) -> CounterfactualEngine:
        loaded = LoadedModel(model.eval(), config, spec, None, "", codec=self.codec)
        return loaded.engine(label_corrections=0, autocast=autocast)

    def measure(
        self, model: Model, config: Config, data: ImageData, step: int, autocast: torch.dtype | None = None
    ) -> dict[str, float]:
        """Measures the responses at a step and returns the shares that are known, `response_NAME`."""
        if not can_intervene(model) or (reader := self._find_reader(model, config, data.spec)) is None:
            if self.until:
                advice = (
                    "set --label_predictor"
                    if can_intervene(model)
                    else "only a Diff-SCM with label_cond can be measured"
                )
                warnings.warn(f"train_until: no effect, nothing measures interventions; {advice}", stacklevel=2)
            return {}
        engine = self._engine(model, config, data.spec, autocast)
        self.latest = measure_responses(engine, data, reader, errors=self._reader_errors)
        shares = {n: each.share.mean for n, each in self.latest.items() if each.share.mean is not None}
        if shares:
            self._record(Measurement(step, mean_share(self.latest), min(shares.values())))
        return {f"response_{name}": share for name, share in shares.items()}

    def _record(self, now: Measurement) -> None:
        self.history = [each for each in self.history if each.step < now.step] + [now]
        best = self.best
        assert best is not None
        note = f"; best: {percent(best.mean)} at step {best.step}" if best != now else ""
        if stalled([each.mean for each in self.history]):
            note += f"; no better than before the last {PATIENCE} measurements"
        self.say(f"step {now.step}: counterfactuals show {percent(now.mean)} of the requested changes{note}")

    @property
    def best(self) -> Measurement | None:
        """The first measurement with the largest mean share; None before the first one."""
        return max(self.history, key=lambda each: each.mean, default=None)

    def has_measured(self, step: int) -> bool:
        """Whether the responses at a step are known."""
        return bool(self.history) and self.history[-1].step >= step

    def stop_reason(self) -> str:
        """The reason to stop training, or an empty string.

        A mean share that does not rise counts from `HARDLY` on: at first the pictures of most models do not respond.
        """
        if not self.until or not self.history:
            return ""
        means, least = [each.mean for each in self.history], self.history[-1].least
        if least >= self.until:
            return f"train_until {self.until:g}: the pictures show at least {percent(least)} of every requested change"
        if max(means) >= HARDLY and stalled(means):
            return f"train_until {self.until:g}: the responses have not risen in the last {PATIENCE} measurements"
        return ""

    def keep_best(self, run_dir: Path, model: torch.nn.Module, config: Config, spec: DatasetSpec, images: int) -> bool:
        """Writes `BEST` if `until` is set and the last measurement is the best; `images` are those trained on."""
        if not self.until or not self.history or self.best != self.history[-1]:
            return False
        described = {"trained_steps": self.history[-1].step, "images_seen": images}
        export_weights(run_dir / BEST, model.state_dict(), describe_checkpoint(config, spec, self.codec) | described)
        write_responses(run_dir / BEST, self.latest)
        return True

    def state_dict(self) -> list[list[float]]:
        """The measurements, for a checkpoint."""
        return [list(each) for each in self.history]

    def load_state_dict(self, state: Sequence[Sequence[float]]) -> None:
        """Restores the measurements of a checkpoint."""
        self.history = [Measurement(int(step), mean, least) for step, mean, least in state]
