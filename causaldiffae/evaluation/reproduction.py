"""The models of the comparison at one budget: a plan of commands, and which of them are finished.

Each step is one command, which can also be run by itself. A step is finished if its output is: a folder of data or of a
predictor, a run whose newest checkpoint is that of the last step, a results file. The commands resume what was
interrupted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from causaldiffae.checkpoints.checkpoint import CONFIG, latest_checkpoint
from causaldiffae.config import DEVICE_HELP, Config, flag, with_help
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError, check_least, check_local
from causaldiffae.evaluation.run import read_results
from causaldiffae.files.reading import read_json, replace_file
from causaldiffae.predictors.predictor import predictor_is_shipped
from causaldiffae.script_util import parse_config

DATASETS: Final = ("morphomnist", "pendulum", "circuit")
SIZES: Final = ("mini", "fast", "paper")
PLAN: Final = "plan.json"
_NOT_IN_PLAN: Final = ("out", "data_dir", "mnist", "seeds", "only", "device", "dry_run", "update_docs")


@dataclass(frozen=True)
class Entry:
    """A row of the comparison.

    Attributes:
        title: name in the tables.
        overrides: names of files in configs/baselines/.
        training: further flags of the training.
        evaluation: further flags of the evaluation.
        trained_as: key of the entry whose run is evaluated; by default its own.
        labels: fraction of the training images with labels, for the table of weak supervision.
    """

    title: str
    overrides: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    trained_as: str = ""
    labels: float | None = None


def _few_labels(fraction: float) -> Entry:
    flags = ("--masking", "True", "--label_fraction", f"{fraction:g}")
    return Entry(f"CausalDiffAE, labels on {fraction:.0%}", training=flags, labels=fraction)


ENTRIES: Final[dict[str, Entry]] = {
    "causaldae": Entry("CausalDiffAE", labels=1.0),
    "conditional": Entry("conditional (given the true labels)", ("conditional",)),
    "diffae": Entry("DiffAE, unaligned", ("diffae",)),
    "diffae_aligned": Entry("DiffAE, aligned", ("diffae_aligned",)),
    "causalvae": Entry("CausalVAE-style", ("causalvae",)),
    "diffscm_explicit": Entry("Diff-SCM, explicit, s = 0.5", ("diffscm",), evaluation=("--w", "0.5")),
    "diffscm_implicit": Entry(
        "Diff-SCM, implicit, s = 1",
        ("diffscm",),
        evaluation=("--predictor_path", "none", "--w", "1"),
        trained_as="diffscm_explicit",
    ),
    "reference": Entry(
        "published recipe",
        training=("--recipe", "reference"),
        evaluation=("--abduction", "noise", "--solver", "ddim"),
    ),
    "labels_50": _few_labels(0.5),
    "labels_10": _few_labels(0.1),
    "labels_1": _few_labels(0.01),
}


@with_help
@dataclass(frozen=True)
class ReproductionSettings:
    """Options of scripts/reproduce.py."""

    out: str = flag("runs/reproduce", "folder for runs, results and report; a folder for each data set and size")
    data_dir: str = flag("data", "folder that holds the data sets, each under its name; made there if missing")
    mnist: str = flag("", "folder with MNIST's IDX files; default: downloaded")
    seeds: str = flag("0,1", "training seeds")
    only: str = flag("", "models of the comparison, separated by commas; default: all")
    total_steps: int = flag(0, "training steps of every model, a third of them with decay; 0 for the configuration's")
    minutes: float = flag(0.0, "minutes of every training, from which the steps follow")
    extra_config: str = flag("", "configuration file whose values replace those of every training")
    num_images: int = flag(200, "test images of the evaluation; 0 for all")
    steps: int = flag(25, "network evaluations in each direction in the evaluation")
    cycle_images: int = flag(10, "images for ten cycles of composition and reversibility")
    update_docs: str = flag("", "folder of README.md and docs/ whose tables are to show the results, like .")
    device: str = flag("auto", DEVICE_HELP)
    dry_run: bool = flag(False, "print the commands with estimated hours, run none")

    def __post_init__(self) -> None:
        check_local(out=self.out, data_dir=self.data_dir)
        check_least(self, total_steps=0, minutes=0, num_images=0, steps=1, cycle_images=0)
        if self.total_steps and self.minutes:
            raise InputError("total_steps, minutes: expected one of them, got both")
        self.chosen_seeds()
        self.chosen()

    def chosen_seeds(self) -> list[int]:
        """The training seeds."""
        parts = [part.strip() for part in self.seeds.split(",") if part.strip()]
        if not parts or not all(part.isdecimal() for part in parts):
            raise InputError(f"seeds: expected numbers separated by commas, got {self.seeds!r}")
        return [int(part) for part in dict.fromkeys(parts)]

    def chosen(self) -> list[str]:
        """Keys of `ENTRIES`."""
        names = [name.strip() for name in self.only.split(",") if name.strip()] or list(ENTRIES)
        for name in names:
            if name not in ENTRIES:
                raise InputError(f"only: expected {', '.join(ENTRIES)}, got {name!r}")
        return names


@dataclass(frozen=True)
class Step:
    """One command and its output.

    Attributes:
        name: such as "train causaldae, seed 0"; the kind of the step is its first word.
        command: program and arguments, without the interpreter.
        output: the file or folder that it makes.
        needs: names of steps that come first.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """data, predictor, guide, train or evaluate."""
        return self.name.partition(" ")[0]

    def config(self) -> Config:
        """The configuration of a training."""
        return parse_config(self.command[1:])

    def is_finished(self) -> bool:
        """Whether the output is complete."""
        if self.kind == "data":
            return self.output.is_dir() and any(self.output.iterdir())
        if self.kind in ("predictor", "noised"):
            return (self.output / "config.json").is_file()
        if self.kind == "train":
            return self._is_trained()
        return self.output.is_file() and bool(read_results(self.output))

    def _is_trained(self) -> bool:
        newest = latest_checkpoint(self.output) if self.output.is_dir() else None
        if newest is None:
            return False
        train = read_json(newest / CONFIG)["config"]["train"]  # with the number of steps that --minutes has chosen
        total = train["total_steps"] if self.config().train.minutes else self.config().train.total_steps
        return int(newest.name.removeprefix("step_")) >= total


@dataclass(frozen=True)
class Plan:
    """All steps of a data set and size, in order.

    Attributes:
        root: the clone, with configs/, scripts/ and classifiers/.
    """

    dataset: str
    size: str
    settings: ReproductionSettings
    root: Path

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise InputError(f"DATASET: expected {', '.join(DATASETS)} or all, got {self.dataset!r}")
        if self.size not in SIZES:
            raise InputError(f"SIZE: expected {', '.join(SIZES)}, got {self.size!r}")

    @property
    def folder(self) -> Path:
        """Folder of all outputs except the data."""
        return Path(self.settings.out) / f"{self.dataset}_{self.size}"

    @property
    def data(self) -> Path:
        """Folder of the data set."""
        return Path(self.settings.data_dir) / self.dataset

    def results(self, name: str, seed: int) -> Path:
        """Results file of an entry."""
        return self.folder / "results" / f"{name}_seed{seed}.json"

    def steps(self) -> list[Step]:
        """The commands, in an order in which they can run."""
        found = [self._data_step()]
        predictor = self._predictor_step(found[0])
        found += [predictor] if predictor else []
        for seed in self.settings.chosen_seeds():
            for name in self.settings.chosen():
                found += [step for step in self._training(name, seed) if step not in found]
                found.append(self._evaluation(name, seed, predictor))
        return found

    def spec(self) -> DatasetSpec:
        """The data set at the size of the models."""
        train = parse_config(self._configs("causaldae")).train
        return dataset_spec(self.dataset, train.image_size or None, train.channels or None)

    def _configs(self, name: str, flag_name: str = "--config") -> list[str]:
        paths = [self.root / "configs" / f"{self.dataset}_causaldae_{self.size}.yaml"]
        paths += [self.root / "configs" / "baselines" / f"{each}.yaml" for each in ENTRIES[name].overrides]
        paths += [Path(self.settings.extra_config)] if self.settings.extra_config else []
        return [part for path in paths for part in (flag_name, str(path))]

    def _program(self, path: str, *arguments: object) -> tuple[str, ...]:
        return (str(self.root / path), *map(str, arguments))

    def _data_step(self) -> Step:
        mnist = self.settings.mnist
        options: dict[str, tuple[str, ...]] = {
            "morphomnist": ("--mnist", mnist) if mnist else ("--download",),
            "circuit": ("--image_size", "128"),
        }
        arguments = (self.dataset, *options.get(self.dataset, ()), "--out", self.data)
        return Step(f"data {self.dataset}", self._program("scripts/make_dataset.py", *arguments), self.data)

    def _predictor_step(self, data: Step) -> Step | None:
        spec = self.spec()
        if predictor_is_shipped(spec):
            return None
        out = self.folder / "predictor"
        size = ("--image_size", spec.image_size, "--channels", spec.channels)
        program = f"classifiers/{self.dataset}_classifier.py"
        command = self._program(program, "--data_dir", self.data, "--out", out, *size)
        return Step(f"predictor of {self.dataset}, {spec.image_size} px", command, out, (data.name,))

    def _run(self, name: str, seed: int) -> tuple[str, Path]:
        trained = ENTRIES[name].trained_as or name
        return trained, self.folder / "runs" / f"{trained}_seed{seed}"

    def _training(self, name: str, seed: int) -> list[Step]:
        settings, (trained, run) = self.settings, self._run(name, seed)
        total, device = settings.total_steps, ("--device", settings.device) if settings.device != "auto" else ()
        where, needs, steps = ("--data_dir", self.data), (f"data {self.dataset}",), []
        if ENTRIES[trained].overrides == ("diffscm",):
            arguments = ["--config", self.root / "configs" / f"noised_{self.size}.yaml"]
            arguments += [*self._configs(trained, "--score_config"), *where, "--out", run / "predictor", "--seed", seed]
            arguments += ["--iterations", total] if total else []
            command = self._program("classifiers/noised_classifier.py", *arguments, *device)
            steps.append(Step(f"noised predictor of {trained}, seed {seed}", command, run / "predictor", needs))
            needs = (steps[0].name,)
        budget: tuple[object, ...] = ("--minutes", settings.minutes) if settings.minutes else ()
        if total:
            budget = ("--total_steps", total, "--lr_anneal_steps", total // 3)
        # a recipe replaces values of the configuration, and the budget those of the recipe
        arguments = [*self._configs(trained), *ENTRIES[trained].training, *where, "--run_dir", run, "--seed", seed]
        command = self._program("scripts/image_train.py", *arguments, *budget, *device)
        return [*steps, Step(f"train {trained}, seed {seed}", command, run, needs)]

    def _evaluation(self, name: str, seed: int, predictor: Step | None) -> Step:
        settings, (trained, run) = self.settings, self._run(name, seed)
        steps, more, needs = settings.steps, list(ENTRIES[name].evaluation), [f"train {trained}, seed {seed}"]
        if name == "reference":  # as published: 250 steps; shorter trainings are over before the average is of use
            steps = 250 if self.size == "paper" else 2 * steps
            more += [] if self.size == "paper" else ["--ema", "none"]
        if predictor:
            more += ["--predictor", str(predictor.output)]
            needs.append(predictor.name)
        more += ["--device", settings.device] if settings.device != "auto" else []
        out = self.results(name, seed)
        arguments = ["--model_path", run, "--data_dir", self.data, "--out", out, "--num_images", settings.num_images]
        arguments += ["--steps", steps, "--cycle_images", settings.cycle_images]
        arguments += ["--label_corrections", 0, "--keep_unchanged", 0, "--keep_causes", False]
        command = self._program("scripts/evaluate.py", *arguments, *more)
        return Step(f"evaluate {name}, seed {seed}", command, out, tuple(needs))

    def claim(self) -> None:
        """Records the budget in the folder.

        Raises:
            InputError: if the folder holds models of another budget.
        """
        wanted = {key: value for key, value in asdict(self.settings).items() if key not in _NOT_IN_PLAN}
        path = self.folder / PLAN
        known = read_json(path) if path.is_file() else wanted
        for key, value in wanted.items():
            if known.get(key) != value:
                raise InputError(
                    f"{key}: expected {known.get(key)!r}, with which {self.folder} was started, got {value!r}; set "
                    "another --out"
                )
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(wanted, indent=1) + "\n").encode())
