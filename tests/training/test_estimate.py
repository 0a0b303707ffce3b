"""Resources of a training run."""

import pytest
from tiny import small_config, squares_spec

from causaldiffae.nn import count_parameters
from causaldiffae.script_util import MODELS, create_model_and_diffusion
from causaldiffae.training import estimate as module
from causaldiffae.training.estimate import estimate


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_is_estimated(kind: str) -> None:
    config = small_config(model_type=kind, ema_rate="0.9,0.99", num_images=4096, total_steps=1000)
    found = estimate(config, squares_spec())
    parameters = count_parameters(create_model_and_diffusion(config, squares_spec())[0])
    assert found.state_mib == pytest.approx(parameters * 24 / 2**20), "weight, gradient, two moments, two averages"
    assert found.data_mib == pytest.approx(4096 * 64 / 2**20)
    assert found.hours == pytest.approx(1000 * 8 / found.images_per_second / 3600)
    assert len(found.lines()) == 2 and "MiB" in found.lines()[0]


@pytest.mark.parametrize(
    ("options", "images"), [({"batch_size": 3}, 3), ({"batch_size": 64}, 16), ({"batch_size": 64, "microbatch": 5}, 5)]
)
def test_the_time_is_measured_on_a_microbatch(options: dict[str, int], images: int) -> None:
    found = estimate(small_config(**options, total_steps=1000), squares_spec())
    assert found.trial_images == images and f"(measured on {images} images" in found.lines()[1]
    assert found.hours == pytest.approx(1000 * options["batch_size"] / found.images_per_second / 3600)


def test_bfloat16_is_measured_where_it_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []
    monkeypatch.setattr(module, "activation_dtype", lambda use, device: requested.append(use))
    estimate(small_config(use_bf16=True), squares_spec())
    assert requested == [True]
