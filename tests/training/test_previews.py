"""Pictures and quick figures made while training."""

import numpy as np
import torch
from tiny import randomise, small_config, squares

from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.generators.pendulum import PendulumGenerator
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training.previews import draw_counterfactuals


def pendulums() -> ImageData:
    spec = dataset_spec("pendulum", 32, 3)
    labels = PendulumGenerator().counterfactual_labels(
        np.array([[10.0, 80.0, 3.0, 10.0], [-20.0, 120.0, 5.0, 8.0]]), {}
    )
    images = PendulumGenerator().counterfactual_images(labels, {})[..., :3].transpose(0, 3, 1, 2)
    return ImageData(spec, "test", resize_area(images, 32), labels.astype(np.float32), None, ["0", "1"])


def test_a_score_network_without_labels_can_be_looked_at_while_it_trains() -> None:
    data = squares()
    for label_cond, columns in ((False, 2), (True, 6)):
        config = small_config(model_type="diffscm", label_cond=label_cond)
        model, _ = create_model_and_diffusion(config, data.spec)
        shown = draw_counterfactuals(randomise(model), config.diffusion, data, torch.device("cpu"))
        assert shown.picture.shape[1] == columns * 10 + 2 and shown.effectiveness == {}


def test_what_was_asked_is_measured_where_the_data_set_can() -> None:
    data = pendulums()
    config = small_config(rep_dim=8, encoder_channels="8,8,8")
    model, _ = create_model_and_diffusion(config, data.spec)
    shown = draw_counterfactuals(randomise(model), config.diffusion, data, torch.device("cpu"))
    assert shown.picture.shape[1] == 10 * 34 + 2
    assert set(shown.effectiveness) <= set(data.spec.graph.names)
    assert all(np.isfinite(error) and error >= 0 for error in shown.effectiveness.values())
