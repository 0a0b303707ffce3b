"""The configuration's dataclasses: ranges, messages, the dict form and the digest."""

import dataclasses
import math
from typing import Any

import pytest
from tiny import COMPONENTS, small_config

from causaldiffae import config as module
from causaldiffae.config import Config, LossConfig, ModelConfig, TrainConfig, parse_ints
from causaldiffae.errors import DataError, InputError

FIELDS = [(name, field.name) for name, part in COMPONENTS.items() for field in dataclasses.fields(part)]


def changed(part: str, name: str) -> Config:
    """The default configuration with one field changed to another valid value."""
    default = getattr(getattr(Config(), part), name)
    if name == "ema_rate":
        value: Any = "0.5"
    elif name == "label_kl_variance":
        value = "unit"
    elif name in ("channel_mult", "encoder_channels", "decoder_channels", "attention_resolutions"):
        value = default + ",4"
    elif name == "network":
        value = "dit"
    elif isinstance(default, bool):
        value = not default
    elif isinstance(default, str):
        value = default + "x"
    elif isinstance(default, int):
        value = default + 2
    else:
        value = default / 2 + 0.125
    needed = {"label_fraction": {"masking": True}, "network": {"model_type": "diffscm"}}
    more = needed.get(name, {})
    component = dataclasses.replace(getattr(Config(), part), **{name: value}, **more)
    return dataclasses.replace(Config(), **{part: component})


def test_round_trip() -> None:
    config = small_config(class_cond=True, drop_prob=0.3, mechanism="affine")
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict(config.to_dict()).digest() == config.digest()
    assert Config.from_dict({}) == Config()
    assert Config.from_dict({"loss": {"kl_weight": 2}}).loss.kl_weight == 2


@pytest.mark.parametrize(("part", "name"), FIELDS)
def test_digest_changes_with_every_field(part: str, name: str) -> None:
    other = changed(part, name)
    assert other != Config()
    assert other.digest() != Config().digest()
    assert Config.from_dict(other.to_dict()) == other


def test_digest_is_twelve_hexadecimal_digits() -> None:
    assert len(Config().digest()) == 12
    int(Config().digest(), 16)


def test_field_names_are_unique_and_described() -> None:
    names = [name for _, name in FIELDS]
    assert len(set(names)) == len(names), "flags are flat: a name may be used once"
    for part in COMPONENTS.values():
        for field in dataclasses.fields(part):
            assert field.name in (part.__doc__ or ""), f"{part.__name__}.{field.name} is not described"
    assert set(names) >= module.POSITIVE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimiser": {}}, "config: unknown part 'optimiser', known are model, diffusion, loss, train"),
        ({"model": {"chanels": 3}}, "config: unknown key 'chanels' in ModelConfig"),
        ({"model": []}, "config: model must be a mapping"),
        ([], "config: model must be a mapping"),
        (None, "config: model must be a mapping"),
        ({"train": {"lr": "fast"}}, "config: lr must be of type float, got 'fast'"),
        ({"train": {"lr": True}}, "config: lr must be of type float, got True"),
        ({"train": {"batch_size": 1.5}}, "config: batch_size must be of type int, got 1.5"),
        ({"train": {"batch_size": True}}, "config: batch_size must be of type int, got True"),
        ({"model": {"class_cond": 1}}, "config: class_cond must be of type bool, got 1"),
        ({"model": {"channel_mult": [1, 2]}}, "config: channel_mult must be of type str"),
    ],
)
def test_refused_descriptions(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("[", r"\[")):
        Config.from_dict(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": math.nan}, "lr: nan given, a finite number is needed"),
        ({"kl_weight": math.inf}, "kl_weight: inf given, a finite number is needed"),
        ({"lr": 0.0}, "lr: 0.0 given, a positive number is needed"),
        ({"batch_size": 0}, "batch_size: 0 given, a positive number is needed"),
        ({"rep_dim": -4}, "rep_dim: -4 given, a positive number is needed"),
        ({"min_scale": 0.0}, "min_scale: 0.0 given, a positive number is needed"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1 given, 0 or more is needed"),
        ({"seed": -1}, "seed: -1 given, 0 or more is needed"),
        ({"drop_prob": 1.5}, "drop_prob: 1.5 given, a probability between 0 and 1 is needed"),
        ({"dropout": 2.0}, "dropout: 2.0 given, a probability between 0 and 1 is needed"),
        ({"label_kl_variance": "one"}, "label_kl_variance: 'one' given, allowed are posterior, unit"),
        ({"num_head_channels": 0}, "num_head_channels: 0 given, -1 or a positive number is needed"),
        ({"num_head_channels": -5}, "num_head_channels: -5 given, -1 or a positive number is needed"),
        ({"channel_mult": ""}, "channel_mult: '' given, at least one number is needed"),
        ({"channel_mult": "1,x"}, "channel_mult: '1,x' given, positive whole numbers"),
        ({"encoder_channels": ","}, "encoder_channels: ',' given, at least one number is needed"),
        ({"ema_rate": "1.0"}, "ema_rate: '1.0' given"),
        ({"ema_rate": "0.9,"}, "ema_rate: '0.9,' given"),
        ({"ema_rate": "nan"}, "ema_rate: 'nan' given"),
        ({"ema_rate": "often"}, r"ema_rate: 'often' given, numbers in \[0, 1\) are needed, like '0.9999'"),
    ],
)
def test_refused_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small_config(**changes)
    assert "\n" not in str(caught.value)


def test_allowed_limits() -> None:
    small_config(num_head_channels=-1, drop_prob=1.0, kl_weight=0.0, microbatch=0, dropout=0.0, weight_decay=0.0)
    assert small_config(ema_rate="0.9, 0.99,0").ema_rates() == ["0.9", "0.99", "0"]


def test_configurations_are_frozen() -> None:
    for part in (Config(), ModelConfig(), LossConfig(), TrainConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.anything = 1  # type: ignore[union-attr]


def test_parse_ints() -> None:
    assert parse_ints("channel_mult", "1,2, 4") == (1, 2, 4)
    assert parse_ints("attention_resolutions", "") == ()
    for text in ("1,x", "0", "-2", "1.5"):
        with pytest.raises(InputError, match=f"channel_mult: '{text}' given, positive whole numbers"):
            parse_ints("channel_mult", text)
