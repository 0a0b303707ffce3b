"""What training and questions are warned of, and that every warning says what to do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import make_folder
from paths import REPO
from running import run
from tiny import small_config, squares

from causaldiffae import train_util
from causaldiffae.datasets.images import ImageData
from causaldiffae.graphs import CausalGraph
from causaldiffae.training.preflight import intervention_warnings, out_of_memory_message, training_warnings

TRAIN = small_config(batch_size=8).train


def with_graph(graph: CausalGraph) -> ImageData:
    data = squares()
    return replace(data, spec=replace(data.spec, graph=graph))


def test_nothing_is_said_where_nothing_is_odd() -> None:
    assert training_warnings(TRAIN, squares()) == []


def test_labels_outside_the_range() -> None:
    data = squares()
    data.labels[3, 1], data.labels[5, 1], data.labels[6, 1] = 900.0, 10.0, float("nan")
    assert training_warnings(TRAIN, data) == [
        "grey: 2 of 8 labels of split train are outside the range 50..250, the first is 900 of 3; check their unit, or "
        "mend the range"
    ]


def test_a_batch_larger_than_the_data() -> None:
    said = training_warnings(replace(TRAIN, batch_size=6), squares(), world=2)
    assert said == [
        "batch_size: a step takes 12 images and there are 8, so images are taken more than once; --batch_size 4 or "
        "less learns as much in less time"
    ]


def test_variables_without_edges() -> None:
    said = training_warnings(TRAIN, with_graph(CausalGraph(("size", "grey"), ())))
    assert len(said) == 1 and "without causes and effects: size, grey" in said[0] and "add edges" in said[0]


def test_interventions_without_effects() -> None:
    graph = squares().spec.graph
    assert intervention_warnings(graph, [{"size": 2.0}, {"size": 2.0, "grey": 90.0}]) == []
    said = intervention_warnings(graph, [{"grey": 90.0}, {"size": 2.0}, {"grey": 100.0}])
    assert len(said) == 1 and "without effects in the graph: grey; nothing else moves" in said[0]
    assert "add edges to the graph and train again" in said[0]
    assert intervention_warnings(CausalGraph(("digit",), ()), [{"digit": 3.0}]) == [], (
        "a lone variable has no effects ever"
    )


@pytest.mark.parametrize(
    ("microbatch", "words"),
    [(0, "batch_size: 8 images of 32x32"), (4, "--microbatch 2 takes the same batch"), (1, "a smaller network")],
)
def test_a_batch_that_does_not_fit(microbatch: int, words: str) -> None:
    assert words in out_of_memory_message(replace(TRAIN, microbatch=microbatch), 32)


def test_training_and_asking_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run_dir = make_folder(tmp_path / "mine"), tmp_path / "run"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = [
        "--config",
        REPO / "configs" / "folder_causaldae_mini.yaml",
        "--data_dir",
        data,
        "--run_dir",
        run_dir,
    ]
    arguments += ["--image_size=8", "--channel_mult=1", "--attention_resolutions=", "--encoder_channels=8"]
    arguments += ["--batch_size=20", "--total_steps=1", "--log_interval=1", "--tensorboard=False"]
    trained = run(REPO / "scripts" / "image_train.py", *arguments)
    assert trained.returncode == 0, trained.stderr
    assert "warning: batch_size: a step takes 20 images and there are 12" in trained.stderr
    assert "warning: graph: without causes and effects: hat" in trained.stderr
    asking = ["--model_path", run_dir, "--data_dir", data, "--out_dir", tmp_path / "out", "--steps", 2]
    asked = run(REPO / "scripts" / "image_causaldae_test.py", *asking, "--do", "grey=yes")
    assert asked.returncode == 0, asked.stderr
    assert "warning: do: without effects in the graph: grey" in asked.stderr

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_util.TrainLoop, "run_step", too_large)
    refused = run(REPO / "scripts" / "image_train.py", *arguments, "--total_steps=2")
    assert refused.returncode == 2
    assert "error: batch_size: 20 images of 8x8" in refused.stderr and "--microbatch 10" in refused.stderr
