"""Configuration dataclasses: ranges, messages, dictionary form and digest."""

import dataclasses
import math
from typing import Any

import pytest
from tiny import small_config

from causaldiffae.config import COMPONENTS, POSITIVE, Config, parse_ints
from causaldiffae.errors import DataError, InputError

FIELDS = [(part, field) for part, component in COMPONENTS.items() for field in dataclasses.fields(component)]
OTHER_VALUES = {"ema_rate": "0.5", "label_kl_variance": "unit", "network": "dit", "label_fraction": 0.5}
OTHER_VALUES |= {"data_on_device": "never", "mask_by": "variable", "use_bf16": True, "compile": False}
STEPS: dict[type, Any] = {int: 2, float: 0.25, str: ",4"}
REQUIRED = {"label_fraction": {"masking": True}, "network": {"model_type": "diffscm"}}


def changed(part: str, field: "dataclasses.Field[Any]") -> Config:
    """The default configuration with one field set to another valid value."""
    default = field.default
    if (value := OTHER_VALUES.get(field.name)) is None:
        value = not default if isinstance(default, bool) else default + STEPS[type(default)]
    component = dataclasses.replace(getattr(Config(), part), **{field.name: value}, **REQUIRED.get(field.name, {}))
    return dataclasses.replace(Config(), **{part: component})


def test_round_trip() -> None:
    config = small_config(class_cond=True, drop_prob=0.3, mechanism="affine")
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({}) == Config()
    assert Config.from_dict({"loss": {"kl_weight": 2}}).loss.kl_weight == 2


@pytest.mark.parametrize(("part", "field"), FIELDS, ids=lambda value: getattr(value, "name", value))
def test_digest_changes_with_every_field(part: str, field: "dataclasses.Field[Any]") -> None:
    other = changed(part, field)
    assert other != Config()
    assert other.digest() != Config().digest()
    assert len(other.digest()) == 12 and int(other.digest(), 16)
    assert Config.from_dict(other.to_dict()) == other


def test_field_names_are_unique_and_documented() -> None:
    names = [field.name for _, field in FIELDS]
    assert len(set(names)) == len(names), "flags have no prefix, so a name may be used once"
    assert set(names) >= POSITIVE
    for part, field in FIELDS:
        assert f"\n    {field.name}: {field.metadata['help']}" in (COMPONENTS[part].__doc__ or ""), (
            f"{part}.{field.name} is not documented"
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimiser": {}}, "config: expected the parts model, diffusion, loss, train, got 'optimiser'"),
        ({"model": {"chanels": 3}}, "config: unknown key 'chanels' in ModelConfig"),
        ({"model": []}, "config: model: expected a mapping"),
        ([], "config: model: expected a mapping"),
        (None, "config: model: expected a mapping"),
        ({"train": {"lr": "fast"}}, "config: lr: expected float, got 'fast'"),
        ({"train": {"lr": True}}, "config: lr: expected float, got True"),
        ({"train": {"batch_size": 1.5}}, "config: batch_size: expected int, got 1.5"),
        ({"train": {"batch_size": True}}, "config: batch_size: expected int, got True"),
        ({"model": {"class_cond": 1}}, "config: class_cond: expected bool, got 1"),
        ({"model": {"channel_mult": [1, 2]}}, r"config: channel_mult: expected str, got \[1, 2\]"),
    ],
)
def test_refused_descriptions(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Config.from_dict(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": math.nan}, "lr: expected a finite number, got nan"),
        ({"kl_weight": math.inf}, "kl_weight: expected a finite number, got inf"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"batch_size": 0}, "batch_size: expected a positive number, got 0"),
        ({"rep_dim": -4}, "rep_dim: expected a positive number, got -4"),
        ({"weight_decay": -0.1}, "weight_decay: expected 0 or more, got -0.1"),
        ({"drop_prob": 1.5}, "drop_prob: expected a number between 0 and 1, got 1.5"),
        ({"dropout": -0.5}, "dropout: expected a number between 0 and 1, got -0.5"),
        ({"num_channels": 1 << 20}, "num_channels: expected at most 8192, got 1048576"),
        ({"label_fraction": 0.5}, "label_fraction: expected 1 without masking, got 0.5; add --masking True"),
        ({"label_kl_variance": "one"}, "label_kl_variance: expected posterior or unit, got 'one'"),
        ({"network": "gan"}, "network: expected unet or dit, got 'gan'"),
        ({"network": "dit"}, "network: expected unet for model_type causaldae, got dit"),
        ({"num_head_channels": 0}, "num_head_channels: expected -1 or a positive number, got 0"),
        ({"num_head_channels": -5}, "num_head_channels: expected -1 or a positive number, got -5"),
        ({"channel_mult": ""}, "channel_mult: expected at least one number, got ''"),
        ({"channel_mult": "1,x"}, "channel_mult: expected positive integers separated by commas, got '1,x'"),
        ({"encoder_channels": ","}, "encoder_channels: expected at least one number, got ','"),
        ({"ema_rate": "1.0"}, r"ema_rate: expected numbers in \[0, 1\) such as '0.9999', got '1.0'"),
        ({"ema_rate": "0.9,"}, "ema_rate: .* got '0.9,'"),
        ({"ema_rate": "nan"}, "ema_rate: .* got 'nan'"),
        ({"ema_rate": "often"}, "ema_rate: .* got 'often'"),
        ({"block_null": True, "model_type": "diffae"}, "block_null: expected model_type causaldae, got diffae"),
    ],
)
def test_refused_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_config(**changes)


def test_limits_are_accepted() -> None:
    small_config(num_head_channels=-1, drop_prob=1.0, kl_weight=0.0, microbatch=0, dropout=0.0, weight_decay=0.0)
    assert small_config(ema_rate="0.9, 0.99,0").ema_rates() == ["0.9", "0.99", "0"]


def test_parse_ints() -> None:
    assert parse_ints("channel_mult", "1,2, 4") == (1, 2, 4)
    assert parse_ints("attention_resolutions", "") == ()
    for text in ("1,x", "0", "-2", "1.5"):
        with pytest.raises(InputError, match=f"channel_mult: expected positive integers .* got '{text}'"):
            parse_ints("channel_mult", text)
    with pytest.raises(InputError, match="channel_mult: expected at most 16 numbers up to 65536"):
        parse_ints("channel_mult", ",".join("1" * 17))


def test_a_rate_without_a_leading_digit_is_named_as_with_one() -> None:
    assert small_config(ema_rate=".99, 0.9").ema_rates() == ["0.99", "0.9"]
    with pytest.raises(InputError, match="ema_rate: expected numbers"):
        small_config(ema_rate="+.99")
