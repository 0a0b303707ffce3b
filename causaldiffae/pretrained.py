"""The Python interface: trained models in a few lines.

`CounterfactualModel` wraps `script_util.load_model` and `counterfactual.CounterfactualEngine`. If a model needs inputs
that are not given (the class of a digit, or labels if it has no encoder), the predictor shipped with it reads them from
the images.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from causaldiffae.checkpoints import model_folders as folders
from causaldiffae.checkpoints.checkpoint import CONFIG
from causaldiffae.counterfactual import Abduction, Counterfactual, CounterfactualEngine
from causaldiffae.datasets import reference
from causaldiffae.datasets.image_input import Images, as_model_images
from causaldiffae.datasets.images import ImageData, to_uint8
from causaldiffae.datasets.registry import (
    DATASETS,
    can_measure,
    example_images,
    known_truth,
)
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.counterfactuals import Counterfactuals, collect
from causaldiffae.evaluation.inputs import by_name, prepare_inputs
from causaldiffae.evaluation.sampling import check_samples, conditions_of_sample, draw_from_prior, spread
from causaldiffae.graphs import CausalGraph
from causaldiffae.guidance import Guidance, guidance_weight
from causaldiffae.nn import DirectModel
from causaldiffae.predictors.predictor import LoadedPredictor, Readings, open_predictor, predictor_is_shipped
from causaldiffae.script_util import SOLVER, STEPS, LoadedModel, load_model
from causaldiffae.solvers import SolverState
from causaldiffae.training import responses
from causaldiffae.training.model_folder import write_model_folder

_BATCH: Final = 64
_NO_OPTIONS: Final = ("self", "model", "spec", "solver", "guidance", "most_probable", "options")
"""Parameters of engines that the class or its methods set."""

ModelT = TypeVar("ModelT", bound="CounterfactualModel")


class CounterfactualModel:
    """A trained model of any type with the names and units of its data set.

        from causaldiffae import CounterfactualModel

        model = CounterfactualModel.from_pretrained("pendulum-mini")
        cf = model.counterfactual(model.examples(4), do={"angle": 20.0})
        print(cf.images.shape, cf.labels["shadow_length"])          # (4, 3, 32, 32) uint8, and four values
        cf.save("grid.png")

    Args:
        loaded: result of `script_util.load_model`.
        steps: network evaluations in each direction.
        solver: "exact_ddim", "dpmpp2m", "obelm", or "ddim" for the published loops.
        predictor: folder of the predictor that reads missing inputs; by default one shipped for the data set.
        options: of `LoadedModel.engine`, such as label_corrections=0, keep_unchanged=0 or keep_causes=False.

    Attributes:
        reference: sample of the training data, with which images and labels are compared; None if there is none.

    Raises:
        InputError: for a model of another type than the class, an unknown solver or a bad number of steps.
    """

    model_type: ClassVar[str | None] = None

    def __init__(
        self,
        loaded: LoadedModel,
        steps: int = STEPS,
        solver: str = SOLVER,
        predictor: str | Path | None = None,
        **options: Any,
    ) -> None:
        found = loaded.config.model.model_type
        if self.model_type is not None and found != self.model_type:
            message = f"expected a {self.model_type!r} model for {type(self).__name__}, got a {found!r} model"
            raise InputError(f"{loaded.path}: {message}; CounterfactualModel opens every type")
        known = {*signature(LoadedModel.engine).parameters, *signature(CounterfactualEngine).parameters}
        if unknown := options.keys() - known.difference(_NO_OPTIONS):
            raise InputError(f"{min(unknown)}: expected an option of LoadedModel.engine or CounterfactualEngine")
        self.loaded, self._steps, self._solver, self._options = loaded, steps, solver, options
        self._predictor_path, self.reference = predictor, reference.reference_of_model(loaded.path, loaded.spec)
        self.engine()  # validates steps and solver

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        name: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "auto",
        steps: int = STEPS,
        solver: str = SOLVER,
        **options: Any,
    ) -> ModelT:
        """Opens a model folder, run directory or step, a shipped name ("pendulum-mini"), or "owner/name" on the Hub.

        Files are never unpickled. `revision` is a branch, tag or commit on the Hub; the device "auto" is CUDA, else
        Apple's MPS, else the CPU. The other arguments are those of the class.

        Raises:
            InputError: if there is no such model (the message lists the shipped ones), or it is of another type.
            DataError: if a file is damaged, or the Hub cannot provide it.
        """
        path = folders.find_model(name, revision)
        own = path / folders.PREDICTOR_FOLDER if (path / folders.PREDICTOR_FOLDER / CONFIG).is_file() else None
        return cls(load_model(str(path), device), steps, solver, own, **options)

    @property
    def graph(self) -> CausalGraph:
        """The causal graph of the variables."""
        return self.spec.graph

    @property
    def spec(self) -> DatasetSpec:
        """Names, units and ranges of the variables, and the size of the images."""
        return self.loaded.spec

    @property
    def network(self) -> torch.nn.Module:
        """The trained module."""
        return self.loaded.model

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.loaded.model.parameters()).device

    def __repr__(self) -> str:
        edges = ", ".join(f"{cause} -> {effect}" for cause, effect in self.graph.edges) or "no edges"
        size = f"{self.spec.channels}x{self.spec.image_size}x{self.spec.image_size}"
        return f"{type(self).__name__}({self.loaded.path!r}: {self.spec.name}, images {size}, {edges})"

    def engine(self, w: float | None = None, most_probable: bool = False) -> CounterfactualEngine:
        """The engine that computes counterfactuals; `w` and `most_probable` as in `predict`."""
        guidance = Guidance(guidance_weight(self.network, w))
        options = {"guidance": guidance, "most_probable": most_probable, **self._options}
        return self.loaded.engine(self._steps, self._solver, **options)

    def examples(self, count: int = 8) -> ImageData:
        """Test images of the model's data set, with their labels and, where it is known, their truth."""
        return example_images(self.spec, count)

    def abduct(
        self, images: Images | ImageData, *, classes: Any = None, labels: Any = None, seed: int = 0
    ) -> Abduction:
        """Abduction: the noise u, z and x_T of images, for any number of calls of `predict`.

        Args:
            images: uint8 arrays (N, C, H, W), floats in [-1, 1], PIL images, file paths, or a split
                (`ImageData`), whose classes and labels are then used.
            classes: (N,), for a class-conditional model; by default read from the images.
            labels: (N, n) in label units, for a model without an encoder; by default read from the images.
            seed: of the noise of discrete variables, which their categories determine only up to its posterior.
        """
        x_start, classes, labels = self._inputs(images, classes, labels)
        return self.engine().abduct(x_start, classes, torch.Generator(self.device).manual_seed(seed), labels)

    def predict(
        self,
        abduction: Abduction,
        do: Mapping[str, Any] | None = None,
        *,
        w: float | None = None,
        most_probable: bool = False,
    ) -> Counterfactuals:
        """Action and prediction: the images under an intervention, or their reconstructions without one.

        Args:
            do: variable -> value in label units or name of a category, or (N,) values, one per image. The class of a
                class-conditional model is set under its name, such as {"digit": 7}.
            w: guidance weight of the intervention; 1 is unguided, 0 ignores the latents. By default 1, and for a
                Diff-SCM, whose weight is the scale s, 4.5 with a noised predictor and 1.5 without one.
            most_probable: give discrete descendants their most probable category, not that of the abducted noise.
        """
        return self._result(self.engine(w, most_probable).predict(abduction, [do or {}]), do or {}, [abduction])

    def encode(self, images: Images | ImageData, *, classes: Any = None, labels: Any = None) -> Abduction:
        """DDIM inversion alone: the noise `x_T` of images and the latents `z` that it is encoded under.

        Takes and returns the same as `abduct`; `InputError` for a model without x_T (CausalVAE).
        """
        if isinstance(self.loaded.model, DirectModel):
            raise InputError("encode: expected a diffusion model, got one that decodes the latents alone")
        return self.abduct(images, classes=classes, labels=labels)

    def decode(self, encoded: Abduction, *, x_T: Tensor | None = None, z: Tensor | None = None) -> Counterfactuals:
        """Inverts `encode`, exactly up to the solver's error; or decodes other noise or latents.

        Args:
            x_T: (N, C, S, S) in place of the encoded noise, such as an interpolation; decoded without the corrections
                of exact DDIM, which belong to the encoded noise.
            z: (N, n, d) in place of the encoded latents, not for a model that is inverted without them (Diff-SCM).
        """
        state = encoded.state
        for name, given, own in (("x_T", x_T, encoded.x_T), ("z", z, encoded.z)):
            if given is not None and (own is None or given.shape != own.shape):
                expected = None if own is None else tuple(own.shape)
                raise InputError(f"{name}: expected shape {expected}, got {tuple(given.shape)}")
        if z is not None and self.loaded.model.unconditional_abduction:
            raise InputError("z: expected none for a model that is inverted without latents; use predict with do")
        if x_T is not None and state is not None:
            state = SolverState(x_T.to(self.device), stop=state.stop)
        given = encoded.z if z is None else z.to(self.device)
        return self.predict(replace(encoded, state=state, z=given, images=None))

    @torch.inference_mode()
    def counterfactual(
        self,
        images: Images | ImageData,
        do: Mapping[str, Any],
        *,
        classes: Any = None,
        labels: Any = None,
        w: float | None = None,
        seed: int = 0,
        most_probable: bool = False,
        samples: int = 1,
        x_T_noise: float = 0.0,
    ) -> Counterfactuals:
        """All three steps; see `abduct` and `predict`. The result holds the true counterfactuals if they are known.

        Args:
            samples: from 2 on, the spread over as many further abductions is in `pixel_std` and `label_std`; images and
                labels are the same.
            x_T_noise: share of noise in the x_T of these abductions, see `evaluation/sampling.py`.
        """
        check_samples(samples, x_T_noise)
        x_start, classes, labels = self._inputs(images, classes, labels)
        checked = self.spec.check_do(do, len(x_start))
        if weak := responses.verdicts(responses.responses_of_model(self.loaded.path), checked, weak_only=True):
            warnings.warn(weak, stacklevel=3)  # inference_mode adds a frame
        generator, engine = torch.Generator(self.device).manual_seed(seed), self.engine(w, most_probable)
        parts, abductions, spreads = [], [], []
        for start in range(0, len(x_start), _BATCH):
            rows = slice(start, start + _BATCH)
            given = [None if each is None else each[rows] for each in (classes, labels)]
            abductions.append(engine.abduct(x_start[rows], given[0], generator, given[1]))
            parts.append(engine.predict(abductions[-1], [checked.rows(rows)])[0])
            if samples > 1:
                inputs = (x_start[rows], given[0], given[1])
                options: dict[str, Any] = {
                    "x_T_noise": x_T_noise,
                    "variance_factor": self.loaded.config.loss.variance_factor,
                }
                spreads += spread(engine, inputs, [checked.rows(rows)], samples, seed + start, **options)
        known = known_truth(images, checked) if isinstance(images, ImageData) else None
        return replace(
            self._result(parts, do, abductions),
            pixel_std=np.concatenate([each.pixel_std for each in spreads]) if spreads else None,
            label_std=by_name(self.spec, np.concatenate([each.label_std for each in spreads])) if spreads else None,
            truth=None if known is None else known[1],
            known_labels=by_name(self.spec, images.labels) if isinstance(images, ImageData) else None,
        )

    @torch.inference_mode()
    def sample(
        self,
        count: int = 8,
        do: Mapping[str, Any] | None = None,
        *,
        classes: Any = None,
        w: float | None = None,
        seed: int = 0,
    ) -> Counterfactuals:
        """Draws images from the model's joint distribution, under an intervention or none.

        u is drawn from its prior (`scm.sample_noise`), z = scm(u, do), and x_T ~ N(0, I) is decoded.

        Args:
            classes: one class or (count,), for a class-conditional model; by default drawn uniformly.

        Raises:
            InputError: for a model whose latents have no prior in label units (an unaligned DiffAE).
        """
        drawn, engine = draw_from_prior(self.loaded, self.device, count, classes, seed), self.engine(w)
        return self._result(engine.predict(drawn, [conditions_of_sample(engine, drawn, do or {})]), do or {})

    def read(self, images: Images) -> Readings:
        """Reads labels and classes from images with the predictor; `InputError` if none is shipped for the data set."""
        return self._predictor.predictor.read(to_uint8(as_model_images(images, self.spec)).cpu().numpy())

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        metrics: Mapping[str, float] | None = None,
        name: str = "",
    ) -> Path:
        """Writes a model folder that `from_pretrained` opens: weights, config, model card, training log, predictors.

        Args:
            dtype: dtype of the weights, for example `torch.float16`; by default unchanged.
            metrics: figures for the card, by name.
            name: name under which the card's example opens the model.

        Raises:
            InputError: for published weights for pixels in 0..1, which config.json cannot express.
        """
        needs_predictor = self.loaded.model.class_cond or self.loaded.model.needs_labels
        predictor = self._predictor if needs_predictor else None
        return write_model_folder(self.loaded, folder, predictor, dtype=dtype, metrics=metrics, name=name)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        token: str | None = None,
        message: str = "Upload the model",
        dtype: torch.dtype | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> str:
        """Uploads the folder of `save_pretrained` to "owner/name" on the Hub; returns the address of the commit.

        Args:
            private: whether a new repository is private.
            token: access token; by default that of `hf auth login`.
            message: commit message.

        Raises:
            InputError: for a name of another form, or if huggingface_hub (extra `hub`) is not installed.
            DataError: if the Hub refuses the upload.
        """
        with tempfile.TemporaryDirectory(prefix="causaldiffae-") as temporary:
            folder = self.save_pretrained(Path(temporary, "model"), dtype=dtype, metrics=metrics, name=name)
            return folders.push_folder(folder, name, private=private, token=token, message=message)

    # ------------------------------------------------------------------ inputs and results

    @cached_property
    def _predictor(self) -> LoadedPredictor:
        return open_predictor(self.spec, str(self._predictor_path or ""), self.device)

    @cached_property
    def _reader(self) -> responses.Reader | None:
        """Reads labels of counterfactuals: a measurement, a predictor, or the model's own encoder."""
        measured = self.spec.name in DATASETS and can_measure(self.spec)
        return responses.find_reader(self.spec, self.engine(), "" if measured else str(self._predictor_path or ""))

    def _inputs(
        self, images: Images | ImageData, classes: Any, labels: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Images, classes and labels as the engine takes them; missing ones are read from the images."""
        return prepare_inputs(self.loaded.model, self.spec, self.device, images, classes, labels, self._read)

    def _read(self, name: str, x_start: Tensor) -> np.ndarray:
        """Reads "classes" or "labels" from images with the predictor."""
        try:
            return getattr(self._predictor.predictor.read(to_uint8(x_start).cpu().numpy()), name)
        except InputError as error:
            raise InputError(f"{name}: this model needs them, but cannot read them from the images: {error}") from None

    def _result(
        self, parts: Sequence[Counterfactual], do: Mapping[str, Any], abducted: Sequence[Abduction] = ()
    ) -> Counterfactuals:
        """The result, with what is read from its images and what is known of the factual ones."""
        can_read = self.spec.class_name in do and (self._predictor_path or predictor_is_shipped(self.spec))
        classes = (lambda images: self._predictor.predictor.read(images).classes) if can_read else None
        found = collect(self.engine(), parts, do, abducted, self._reader, classes, self.reference)
        if found.checks is not None:  # the decorator of inference mode adds a frame
            found.checks.warn(stacklevel=5 if torch.is_inference_mode_enabled() else 4)
        return found


class CausalDiffAE(CounterfactualModel):
    """A trained CausalDiffAE; its network is a `causaldiffae.model.CausalDiffAE`."""

    model_type = "causaldae"
