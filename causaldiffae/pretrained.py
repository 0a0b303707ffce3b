"""Trained models in a few lines of Python, for notebooks.

    model = CausalDiffAE.from_pretrained("morphomnist-mini")     # a folder, a shipped name, or owner/name on the hub
    cf = model.counterfactual(images, do={"thickness": 4.5})     # abduction, action, prediction
    cf.images, cf.labels["intensity"], cf.show()

This is the outer layer over `script_util.load_model` and `counterfactual.CounterfactualEngine`; the network itself
(`causaldiffae.model.CausalDiffAE` and its kin) is `model.network`. What a model needs beside the image and is not
given, a digit's class or the labels where there is no encoder, is read by the predictor that is shipped with it.

`sample` draws from the model's own joint distribution: u from its prior (prior.py), z = scm(u, do), x_T from N(0, I),
decoded.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import CONFIG, MODEL, export_weights
from causaldiffae.checkpoints.model_card import CardFacts, write_card
from causaldiffae.checkpoints.model_folders import NOISED_PREDICTOR_FOLDER, PREDICTOR_FOLDER, find_model, push_folder
from causaldiffae.counterfactual import Abduction, Counterfactual, CounterfactualEngine, DirectModel
from causaldiffae.datasets.image_input import Images, as_model_images
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.datasets.registry import example_images, find_dataset, true_counterfactual, truth_is_known
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.counterfactuals import Counterfactuals
from causaldiffae.files.reading import read_json
from causaldiffae.graphs import CausalGraph
from causaldiffae.guidance import Guidance
from causaldiffae.nn import count_parameters
from causaldiffae.predictors.predictor import (
    LoadedPredictor,
    Readings,
    check_fits,
    find_predictor,
    load_predictor,
    save_predictor,
)
from causaldiffae.scm import sample_noise
from causaldiffae.script_util import SOLVER, STEPS, LoadedModel, describe_checkpoint, load_model
from causaldiffae.solvers import SolverState

_BATCH: Final = 64
_LOCAL_PATHS: Final = ("data_dir", "run_dir", "graph", "resume_checkpoint", "init_weights")

ModelT = TypeVar("ModelT", bound="CounterfactualModel")


class CounterfactualModel:
    """A trained model of any type, with its data set's names and units.

    Args:
        loaded: what `script_util.load_model` returned.
        steps: evaluations of the network each way.
        solver: "dpmpp2m", "obelm", or "ddim" for the published loops.
        predictor: folder of the predictor that reads what is not given; by default one shipped for the data set.
    """

    model_type: ClassVar[str | None] = None

    def __init__(
        self, loaded: LoadedModel, steps: int = STEPS, solver: str = SOLVER, predictor: str | Path | None = None
    ) -> None:
        found = loaded.config.model.model_type
        if self.model_type is not None and found != self.model_type:
            raise InputError(
                f"{loaded.path}: a model of type {found!r}; {type(self).__name__} is for {self.model_type!r}, "
                "CounterfactualModel opens every type"
            )
        self.loaded, self._steps, self._solver = loaded, steps, solver
        self._predictor_path = predictor
        self.engine(1.0)  # a wrong solver or number of steps is refused here

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        name: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        steps: int = STEPS,
        solver: str = SOLVER,
    ) -> ModelT:
        """Opens a folder (model folder, run directory, step), a shipped name such as "morphomnist-mini", or a hub name.

        Args:
            revision: of a hub repository: a branch, tag or commit.

        Raises:
            InputError: if there is no such model (the message lists what is shipped), or it is of another type.
            DataError: if a file is damaged, or the hub does not give it. Nothing is ever unpickled.
        """
        path = find_model(name, revision)
        own = path / PREDICTOR_FOLDER
        return cls(load_model(str(path), device), steps, solver, own if (own / CONFIG).is_file() else None)

    @property
    def graph(self) -> CausalGraph:
        """The causal graph over the variables."""
        return self.spec.graph

    @property
    def spec(self) -> DatasetSpec:
        """Names, units and ranges of the variables, size of the images."""
        return self.loaded.spec

    @property
    def network(self) -> torch.nn.Module:
        """The trained module."""
        return self.loaded.model

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.loaded.model.parameters()).device

    def __repr__(self) -> str:
        edges = ", ".join(f"{cause} -> {effect}" for cause, effect in self.graph.edges) or "no edges"
        size = f"{self.spec.channels}x{self.spec.image_size}x{self.spec.image_size}"
        return f"{type(self).__name__}({self.loaded.path!r}: {self.spec.name}, images {size}, {edges})"

    def engine(self, w: float = 1.0) -> CounterfactualEngine:
        """The engine that asks, with a grade w of the interventions."""
        return self.loaded.engine(self._steps, self._solver, guidance=Guidance(w))

    def examples(self, count: int = 8) -> ImageData:
        """Test images of the model's data set, with their labels and known truth; see examples.py."""
        return example_images(self.spec, count)

    def abduct(
        self, images: Images | ImageData, *, classes: Any = None, labels: Any = None, seed: int = 0
    ) -> Abduction:
        """Step one: the noise u, z and x_T behind images. One abduction serves any number of `predict`.

        Args:
            images: uint8 arrays (N, C, H, W), float tensors in [-1, 1], PIL images, file paths, or a split
                (`ImageData`), which brings its classes and labels along.
            classes: (N,) for a class-conditional model; left out, read off the images.
            labels: (N, n), label units, for a model without an encoder; left out, read off the images.
        """
        x_start, classes, labels = self._inputs(images, classes, labels)
        return self.engine().abduct(x_start, classes, torch.Generator(self.device).manual_seed(seed), labels)

    def predict(self, abduction: Abduction, do: Mapping[str, Any] | None = None, *, w: float = 1.0) -> Counterfactuals:
        """Steps two and three: the images under an intervention; without one, the reconstruction.

        Args:
            do: variable -> value in its own units, or (N,) values, one for each image.
            w: grade of the intervention; 1 is none, 0 leaves the latents out.
        """
        answer = self.engine(w).predict(abduction, [do or {}])[0]
        return self._result(answer, do or {})

    @torch.inference_mode()
    def counterfactual(
        self,
        images: Images | ImageData,
        do: Mapping[str, Any],
        *,
        classes: Any = None,
        labels: Any = None,
        w: float = 1.0,
        seed: int = 0,
    ) -> Counterfactuals:
        """All three steps; arguments as in `abduct` and `predict`. The truth comes along where it is known."""
        x_start, classes, labels = self._inputs(images, classes, labels)
        checked = self.spec.check_do(do, len(x_start))
        generator, engine = torch.Generator(self.device).manual_seed(seed), self.engine(w)
        pieces, encoded = [], []
        for rows in _batches(len(x_start)):
            part = [None if each is None else each[rows] for each in (classes, labels)]
            abducted = engine.abduct(x_start[rows], part[0], generator, part[1])
            pieces.append(engine.predict(abducted, [checked.rows(rows)])[0])
            encoded.append(self.loaded.model.read_labels(abducted.z))
        joined = Counterfactual(
            *(torch.cat([getattr(each, key) for each in pieces]) for key in ("images", "labels", "z"))
        )
        known = isinstance(images, ImageData) and truth_is_known(images)
        return replace(
            self._result(joined, dict(do)),
            factual=to_uint8(x_start).cpu().numpy(),
            factual_labels=self._named(self.spec.denormalise(torch.cat(encoded))),
            truth=true_counterfactual(images, checked)[1] if known and isinstance(images, ImageData) else None,
        )

    @torch.inference_mode()
    def sample(
        self, count: int = 8, do: Mapping[str, Any] | None = None, *, classes: Any = None, w: float = 1.0, seed: int = 0
    ) -> Counterfactuals:
        """New images from the model's joint distribution, under an intervention or none.

        Args:
            classes: one or (count,), of a class-conditional model; left out, drawn uniformly.

        Raises:
            InputError: for a model whose latents have no prior in label units (an unaligned DiffAE).
        """
        scm = getattr(self.loaded.model, "scm", None)
        if scm is None or getattr(self.loaded.model, "aligned", True) is False:
            raise InputError("sample: this model's latents have no prior over labels, so there is nothing to draw from")
        if not (isinstance(count, int) and count > 0):
            raise InputError(f"sample: {count!r} images asked for, a whole number above 0 is needed")
        generator = torch.Generator().manual_seed(seed)
        low, high = (self.spec.normalise(torch.tensor(end)) for end in (self.spec.low, self.spec.high))
        u = sample_noise(scm, low, high, count, generator).to(self.device)
        engine, shape = self.engine(w), (count, self.spec.channels, self.spec.image_size, self.spec.image_size)
        direct = isinstance(self.loaded.model, DirectModel)
        state = None if direct else SolverState(torch.randn(shape, generator=generator).to(self.device))
        drawn = torch.randint(self.spec.num_classes or 1, (count,), generator=generator)
        given = drawn if classes is None else torch.as_tensor(classes).expand(count)
        kept = self._checked_classes(given, count) if self.loaded.model.class_cond else None
        abducted = Abduction(u, self.loaded.model.predict(u), state, kept)
        return self._result(engine.predict(abducted, [do or {}])[0], do or {})

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        metrics: Mapping[str, float] | None = None,
        name: str = "",
    ) -> Path:
        """Writes a model folder that `from_pretrained` opens: weights, config.json, and README.md, its model card.

        The training log comes along where there is one, and so does the predictor where the model needs it; paths of
        this machine do not.

        Args:
            dtype: of the weights, for instance `torch.float16`; by default as they are, float32.
            metrics: figures for the card, by their names.
            name: under which the card's example opens it, where that is known.
        """
        if self.loaded.pixel_range != (-1.0, 1.0):
            raise InputError(f"{self.loaded.path}: a state dict of the published code; its pixels span 0..1, which a "
                             "model folder cannot say")  # fmt: skip
        source = Path(self.loaded.path)
        described = describe_checkpoint(self.loaded.config, self.spec)
        steps = self.loaded.step or read_json(source / CONFIG).get("trained_steps")
        train = {**described["config"]["train"], **dict.fromkeys(_LOCAL_PATHS, "")}
        described = {**described, "config": {**described["config"], "train": train}, "trained_steps": steps}
        target = export_weights(folder, self.network.state_dict(), described, dtype)
        log = next(
            (each / "progress.csv" for each in (source, source.parent) if (each / "progress.csv").is_file()), None
        )
        if log is not None and log.resolve() != (target / "progress.csv").resolve():
            shutil.copyfile(log, target / "progress.csv")
        if self.loaded.model.class_cond or self.loaded.model.needs_labels:
            reader = self._reader
            save_predictor(target / PREDICTOR_FOLDER, reader.predictor, reader.figures)
        guides = [
            place / NOISED_PREDICTOR_FOLDER
            for place in (source, source.parent)
            if (place / NOISED_PREDICTOR_FOLDER / CONFIG).is_file()
        ]
        if (
            getattr(self.network, "predictor", None) is not None
            and guides
            and guides[0] != target / NOISED_PREDICTOR_FOLDER
        ):
            (target / NOISED_PREDICTOR_FOLDER).mkdir(exist_ok=True)
            for name in (CONFIG, MODEL):
                shutil.copyfile(guides[0] / name, target / NOISED_PREDICTOR_FOLDER / name)
        trained_on = find_dataset(self.spec.name).source
        size = count_parameters(self.network)
        facts = CardFacts(self.loaded.config, self.spec, size, steps, trained_on, name)
        write_card(target, facts, metrics)
        return target

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
        """`save_pretrained`, then the folder to "owner/name" on the Hugging Face Hub, model card included.

        Args:
            private: of a repository that is made now.
            token: of the hub; by default the one of `hf auth login`.
            message: of the commit.
            dtype, metrics: as in `save_pretrained`.

        Returns:
            The commit's address.

        Raises:
            InputError: if the name is none, or huggingface_hub (extra `hub`) is not installed.
            DataError: if the hub does not take it.
        """
        with tempfile.TemporaryDirectory(prefix="causaldiffae-") as place:
            folder = self.save_pretrained(Path(place, "model"), dtype=dtype, metrics=metrics, name=name)
            return push_folder(folder, name, private=private, token=token, message=message)

    @cached_property
    def _reader(self) -> LoadedPredictor:
        path = self._predictor_path or find_predictor(self.spec)
        reader = load_predictor(path, self.device)
        check_fits(reader.predictor, self.spec, str(path))
        return reader

    def read(self, images: Images) -> Readings:
        """Labels and classes as the predictor reads them off images; `InputError` where none is shipped for them."""
        return self._reader.predictor.read(to_uint8(as_model_images(images, self.spec)).cpu().numpy())

    def _inputs(
        self, images: Images | ImageData, classes: Any, labels: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if isinstance(images, ImageData):
            x_start, own_classes, own_labels = model_inputs(images, self.device)
            classes = own_classes if classes is None else classes
            labels = own_labels if labels is None else labels
            x_start = as_model_images(x_start, self.spec)
        else:
            x_start = as_model_images(images, self.spec).to(self.device)
        model = self.loaded.model
        if model.class_cond:
            classes = self._read_off("classes", x_start) if classes is None else classes
            classes = self._checked_classes(classes, len(x_start))
        if model.needs_labels and labels is None:
            labels = self._read_off("labels", x_start)
        if labels is not None:
            labels = torch.as_tensor(np.asarray(labels), dtype=torch.float32).to(self.device)
            wanted = (len(x_start), len(self.graph))
            if labels.shape != wanted:
                raise InputError(f"labels: shape {tuple(labels.shape)} given, {wanted} is needed")
        return x_start, classes if model.class_cond else None, labels

    def _read_off(self, what: str, x_start: Tensor) -> np.ndarray:
        """ "classes" or "labels" of images, by the predictor."""
        try:
            return getattr(self._reader.predictor.read(to_uint8(x_start).cpu().numpy()), what)
        except InputError as error:
            raise InputError(f"{what}: this model needs the images' {what}; to read them off, {error}") from None

    def _checked_classes(self, classes: Any, count: int) -> Tensor:
        given = torch.as_tensor(np.asarray(classes) if not isinstance(classes, Tensor) else classes)
        most = self.spec.num_classes or 1
        if given.shape != (count,) or given.is_floating_point() or not bool(((given >= 0) & (given < most)).all()):
            raise InputError(f"classes: {count} whole numbers in 0..{most - 1} are needed, got {str(classes)[:80]}")
        return given.long().to(self.device)

    def _named(self, labels: Tensor) -> dict[str, np.ndarray]:
        table = labels.detach().cpu().numpy()
        return {name: table[:, i] for i, name in enumerate(self.graph.names)}

    def _result(self, answer: Counterfactual, do: Mapping[str, Any]) -> Counterfactuals:
        images = to_uint8(answer.images.nan_to_num()).cpu().numpy()
        return Counterfactuals(images, self._named(answer.labels), dict(do), None, None, None, self.spec)


class CausalDiffAE(CounterfactualModel):
    """A trained CausalDiffAE (the network is `causaldiffae.model.CausalDiffAE`); see `CounterfactualModel`."""

    model_type = "causaldae"


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + _BATCH) for start in range(0, count, _BATCH))
