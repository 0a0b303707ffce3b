"""`DatasetSpec`: normalisation, interventions, and the description in a checkpoint."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from paths import REPO

from causaldiffae.datasets.registry import DATASETS, dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.datasets.variables import category_label
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph

TOY = DatasetSpec("toy", 4, 1, CausalGraph(("a", "b"), (("a", "b"),)), (1.0, 2.0), (2.0, 4.0), (0, 0), (3, 9))
KINDS = replace(
    TOY,
    graph=CausalGraph(("hat", "age", "grey", "digit", "sign")),
    shift=(0.0, 40.0, 0.5, 0.0, 0.0),
    scale=(1.0, 10.0, 0.5, 1.0, 1.0),
    low=(0, 20, 0, 0, -1),
    high=(2, 60, 1, 2, 1),
    kinds=("categorical", "continuous", "binary", "categorical", "binary"),
    categories=(("cap", "none", "straw"), (), ("no", "yes"), ("3", "5", "7"), ()),
)


@pytest.mark.parametrize(
    "spec", [KINDS, *(entry.spec for entry in DATASETS.values() if entry.spec)], ids=lambda s: s.name
)
def test_specs_survive_json(spec: DatasetSpec) -> None:
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_specs_of_the_oldest_checkpoints_are_read() -> None:
    paths = sorted(REPO.glob("weights/*/config.json"))
    assert paths
    for path in paths:
        spec = DatasetSpec.from_dict(json.loads(path.read_text())["dataset"])
        assert spec == dataset_spec(spec.name, spec.image_size, spec.channels)
        assert bool(spec.kinds) == bool(spec.categories) == (spec.name == "mnist") and spec.resize == "area"


def test_the_class_is_set_like_a_variable() -> None:
    digits = replace(TOY, num_classes=10, class_name="digit")
    do = digits.check_do({"digit": 7, "a": 2.0}, warn=True)
    assert do == {"digit": 7.0, "a": 2.0} and digits.normalise_do(do) == {"a": 0.5}
    assert digits.classes_of(do, 3).tolist() == [7, 7, 7] and digits.classes_of(digits.check_do({"a": 1}), 3) is None  # type: ignore[union-attr]
    each = digits.check_do({"digit": torch.tensor([1, 9])}, 2)
    assert digits.classes_of(each, 2).tolist() == [1, 9] and each.rows(slice(1, 2)) == {"digit": [9]}  # type: ignore[union-attr]
    assert digits.names_of(do) == ["a"] and digits.format_value("digit", 7.0) == "7"
    assert digits.values_of("digit") == tuple(range(10)) and digits.values_of("a") == ()
    for value in (10, -1, 1.5, "seven"):
        with pytest.raises(InputError, match=r"do: digit: expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, got"):
            digits.check_do({"digit": value})
    for spec, name in ((TOY, "class"), (digits, "class"), (TOY, "")):
        with pytest.raises(InputError, match=f"do: expected one of a, b, got '{name}'"):
            spec.check_do({name: 1})


def test_the_class_has_a_name_that_no_variable_has_and_old_checkpoints_have_digits() -> None:
    assert replace(TOY, num_classes=3).class_name == "class" and TOY.class_name == ""
    with pytest.raises(DataError, match="class_name: expected a name that no variable has, got 'a'"):
        replace(TOY, num_classes=3, class_name="a")
    old = replace(TOY, num_classes=3).to_dict()
    del old["class_name"]
    assert DatasetSpec.from_dict(old).class_name == "digit"
    assert DatasetSpec.from_dict({**old, "num_classes": None}).class_name == ""


def test_rounding_of_categories_is_removed_and_real_values_stay() -> None:
    assert KINDS.normalised_categories() == {
        "hat": (0.0, 1.0, 2.0), "grey": (-1.0, 1.0), "digit": (0.0, 1.0, 2.0), "sign": (-1.0, 1.0)
    }  # fmt: skip
    rough = torch.tensor([[1.0000001, 33.3, 0.9999999, 1.2, -0.7]])
    np.testing.assert_array_equal(KINDS.nearest_categories(rough), np.float32([[1, 33.3, 1, 1, -1]]))
    assert torch.equal(TOY.nearest_categories(rough[:, :2]), rough[:, :2])


@pytest.mark.parametrize("labels", [np.array([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[1.0, 2.0], [3.0, 6.0]])])
def test_normalisation_is_inverted_and_keeps_type_and_dtype(labels: Any) -> None:
    normalised = TOY.normalise(labels)
    assert type(normalised) is type(labels) and normalised.dtype == labels.dtype
    assert normalised.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert TOY.denormalise(normalised).tolist() == labels.tolist()
    assert TOY.normalise(torch.tensor([1, 2])).dtype == torch.float32
    with pytest.raises(InputError, match=r"labels: expected shape \(\.\.\., 5\), got \(2,\)"):
        KINDS.normalise(labels[0])


def test_an_intervention_is_in_label_units() -> None:
    assert TOY.normalise_do(TOY.check_do({"b": 4, "a": np.float32(2)})) == {"b": 0.5, "a": 0.5}
    assert TOY.check_do({"a": torch.tensor(1.5)}) == {"a": 1.5}
    with pytest.warns(UserWarning, match=r"do: b=10 is outside the range of the training labels, 0\.\.9"):
        assert TOY.check_do({"b": 10}) == {"b": 10.0}


def test_an_intervention_takes_one_value_per_image() -> None:
    columns = TOY.check_do({"a": np.array([1.5, 3.0, 1.5]), "b": 9.0}, 3)
    np.testing.assert_array_equal(columns["a"], [1.5, 3.0, 1.5])
    assert columns["b"] == 9.0
    assert TOY.check_do(columns, 3) is columns, "a CheckedDo is not validated again"
    np.testing.assert_array_equal(columns.rows(slice(1, 3))["a"], [3.0, 1.5])


def test_categories_are_given_by_name_or_number() -> None:
    assert KINDS.check_do({"hat": "straw", "grey": "yes"}) == {"hat": 2.0, "grey": 1.0}
    assert KINDS.check_do({"hat": 1, "grey": np.float32(0)}) == {"hat": 1.0, "grey": 0.0}
    assert KINDS.check_do({"digit": 7, "sign": -1}) == {"digit": 2.0, "sign": -1.0}
    assert KINDS.check_do({"digit": "3"}) == {"digit": 0.0}
    assert KINDS.normalise_do(KINDS.check_do({"grey": "yes"})) == {"grey": 1.0}
    assert [KINDS.category_values(i) for i in range(5)] == [(0, 1, 2), (), (0, 1), (0, 1, 2), (-1, 1)]
    assert [KINDS.format_value(*each) for each in (("hat", 2.0), ("age", 33.333), ("digit", 1.0))] == [
        "straw",
        "33.3",
        "5",
    ]


def test_a_binary_variable_takes_ends_that_float32_cannot_represent() -> None:
    low, high = (float(np.float32(value)) for value in (0.1, 0.9))
    assert low != 0.1 and category_label("dose", 0.1, (), low, high) == low
    assert category_label("dose", 0.9, (), low, high) == high
    with pytest.raises(InputError, match=r"expected 0\.1 or 0\.9, got 0\.11"):
        category_label("dose", 0.11, (), low, high)


def test_true_and_false_are_the_categories_of_a_binary_variable() -> None:
    assert KINDS.check_do({"grey": True, "sign": False}) == {"grey": 1.0, "sign": -1.0}
    assert KINDS.check_do({"grey": np.array([True, False])}, 2)["grey"].tolist() == [1.0, 0.0]


def test_lists_and_tuples_have_one_value_per_image() -> None:
    assert TOY.check_do({"a": [1.5, 3]}, 2)["a"].tolist() == [1.5, 3.0]
    assert KINDS.check_do({"hat": ("straw", "cap", "straw")}, 3)["hat"].tolist() == [2.0, 0.0, 2.0]
    with pytest.raises(InputError, match=r"one per image \(3,\), got shape \(2,\)"):
        TOY.check_do({"a": [1.5, 3.0]}, 3)


def test_a_column_of_pandas_has_one_value_per_image() -> None:
    frame = pd.DataFrame({"a": [1, 2], "hat": ["straw", "cap"]})
    for kind in ("object", "string", "category"):
        assert KINDS.check_do({"hat": frame["hat"].astype(kind)}, 2)["hat"].tolist() == [2.0, 0.0]
    for column in (frame["a"], frame["a"].astype("Int64"), frame.set_index("a").index):
        assert TOY.check_do({"a": column}, 2)["a"].tolist() == [1.0, 2.0]
    assert KINDS.check_do({"hat": ["straw", 0]}, 2)["hat"].tolist() == [2.0, 0.0], "names and numbers"


def test_names_may_differ_in_case_and_in_the_form_of_unicode() -> None:
    def label(value: str, *names: str) -> float:
        return category_label("hat", value, names, 0.0, len(names) - 1.0)

    assert label("STRAW", "cap", "straw") == 1.0 and label("Mu\u0308tze", "cap", "M\u00fctze") == 1.0
    assert label("aA", "Aa", "aA") == 1.0
    with pytest.raises(InputError, match="expected one of Aa"):
        label("aa", "Aa", "aA")


@pytest.mark.parametrize(
    ("spec", "do", "message"),
    [
        (TOY, {"c": 1}, "do: expected one of a, b.*, got 'c'"),
        (TOY, {"a": "1"}, "do: a: expected a finite number, got '1'"),
        (TOY, {"a": True}, "do: a: expected a finite number, got True"),
        (TOY, {"a": float("inf")}, "do: a: expected a finite number, got inf"),
        (TOY, [("a", 1)], r"do: expected a mapping from variable to value, got \[\('a', 1\)\]"),
        (TOY, {"a": np.array([1.0, 2.0])}, r"do: a: expected one number, or one per image \(3,\), got shape \(2,\)"),
        (TOY, {"a": np.array([1.0, np.nan, 2.0])}, "do: a: expected finite numbers, got NaN or infinity"),
        *(
            (KINDS, {"hat": wrong}, r"do: hat: expected one of cap \(0\), none \(1\), straw \(2\), got ")
            for wrong in ("helmet", 3, 0.5, -1, True, None, np.array([0.0, 0.5, 1.0]))
        ),
        *(
            (TOY, {"a": wrong}, f"do: a: expected a finite number, got {got}")
            for wrong, got in (
                ([1.0, None, 2.0], "None"),
                (["1", 2.0, 3.0], "'1'"),
                ([[1], [2, 3], 4], r"\[1\]"),
                (pd.Series([1, None, 2], dtype="Int64"), "<NA>"),
                (10**400, "1000"),
                (np.timedelta64(1, "D"), "datetime.timedelta"),
            )
        ),
        (KINDS, {"hat": ["cap", None, "none"]}, r"do: hat: expected one of cap \(0\), .* got None"),
        (KINDS, {"digit": 2}, "do: digit: expected one of 3, 5, 7, got 2"),
        (KINDS, {"sign": 0}, "do: sign: expected -1 or 1, got 0"),
    ],
)
def test_an_invalid_intervention_is_refused(spec: DatasetSpec, do: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spec.check_do(do, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "data set: unknown key 'extra', expected name, image_size"),
        ({"name": ""}, "data set: name: expected up to 64 letters, digits, - and _, got ''"),
        ({"name": "../../x"}, "data set: name: expected up to 64 letters, digits, - and _, got '../../x'"),
        ({"name": "a" * 65}, "data set: name: expected up to 64 letters"),
        ({"channels": 65}, r"channels: expected an integer in 1\.\.64, got 65"),
        ({"graph": {"names": ["a", "a"]}}, "data set: graph: expected unique variable names, got 'a' 2 times"),
        ({"graph": [1]}, "data set: graph: expected a mapping with names and edges, got list"),
        ({"shift": None}, "shift: expected a list of 5 finite numbers, got None"),
        ({"shift": [1.0]}, r"shift: expected a list of 5 finite numbers, got \[1.0\]"),
        ({"low": [0.0, float("nan"), 0, 0, 0]}, "low: expected a list of 5 finite numbers"),
        ({"low": [0.0, True, 0, 0, 0]}, "low: expected a list of 5 finite numbers"),
        ({"scale": [1, 0, 1, 1, 1]}, r"scale: expected positive numbers, got \[1.0, 0.0, 1.0, 1.0, 1.0\]"),
        ({"low": [4, 0, 0, 0, 0]}, r"low: expected numbers below high \[2.0, 60.0, 1.0, 2.0, 1.0\], got \[4.0"),
        ({"image_size": 4.5}, r"image_size: expected an integer in 1\.\.4096, got 4.5"),
        ({"image_size": 5000}, r"image_size: expected an integer in 1\.\.4096, got 5000"),
        ({"num_classes": 0}, r"num_classes: expected an integer in 1\.\.10000, got 0"),
        ({"units": ["m"]}, r"units: expected one string per variable, or none, got \['m'\]"),
        ({"units": "meter"}, "units: expected one string per variable, or none, got 'meter'"),
        ({"units": [1] * 5}, "units: expected one string per variable"),
        ({"kinds": ["odd"] * 5}, "kinds: expected one of continuous, binary, categorical per variable, or none, got"),
        ({"kinds": ["binary"]}, "kinds: expected one of continuous"),
        ({"categories": [["a", "b"]]}, "categories: expected a list per variable, or none, got"),
        ({"categories": [["a"], [], [], [], []]}, r"categories: expected two or more distinct names, got \['a'\]"),
        ({"categories": ["ab", [], [], [], []]}, "categories: expected lists of names, got 'ab'"),
        (
            {"categories": [["a", "b"], ["a", "b"], [], [], []]},
            r"categories: expected names that fit a continuous variable, got \['a', 'b'\]",
        ),
        ({"resize": "stretch"}, "resize: expected one of crop, area, pad, got 'stretch'"),
        ({"group": None}, "group: expected the name of a column, got None"),
        ({"value_range": (1,)}, r"value_range: expected a list of 2 finite numbers, got \(1,\)"),
        ({"value_range": (9, 9)}, r"value_range: expected increasing numbers, got \[9.0, 9.0\]"),
        ({"split_seed": -1}, "split_seed: expected a non-negative integer, got -1"),
        ({"split_shares": [1, 1, 1]}, r"split_shares: expected fractions that sum to 1, got \[1.0, 1.0, 1.0\]"),
        ({"split_shares": [1, 0]}, "split_shares: expected a list of 3 finite numbers"),
    ],
)
def test_an_invalid_description_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^data set( toy)?: ({message.removeprefix('data set: ')})"):
        DatasetSpec.from_dict({**KINDS.to_dict(), **change})


def test_an_incomplete_description_is_refused() -> None:
    with pytest.raises(DataError, match="data set: expected key 'scale', got none"):
        DatasetSpec.from_dict({key: value for key, value in TOY.to_dict().items() if key != "scale"})
    with pytest.raises(DataError, match="data set: expected a mapping, got NoneType"):
        DatasetSpec.from_dict(None)
