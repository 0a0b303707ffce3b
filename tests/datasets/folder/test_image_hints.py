"""Notes and hints on the images of a folder."""

from pathlib import Path

from folders import make_folder, paint
from PIL import Image

from causaldiffae.datasets.folder.check import check_folder


def test_copies_in_other_splits_are_hinted_at(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")  # 12 images in train, 4 in val, 4 in test
    for source, copy in ((0, 1), (2, 13), (3, 17), (13, 18)):
        (folder / f"im/{copy}.png").write_bytes((folder / f"im/{source}.png").read_bytes())
    assert check_folder(folder).hints == [
        "3 images have a copy in another split, such as im/13.png of split val and im/2.png of split train; scores on "
        "copies of training images are too good"
    ]


def test_images_without_contrast_are_no_copies(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    for i in (0, 13):
        Image.new("RGB", (8, 8), "red").save(folder / f"im/{i}.png")
    assert not any("copy" in hint for hint in check_folder(folder).hints)


def test_grey_images_in_three_channels_are_noted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    assert not check_folder(folder).notes
    for i in range(20):
        paint(i, mode="L").save(folder / f"im/{i}.png")
    note = "split train: the images are grey; with `channels: 1` in the graph file, counterfactuals are too"
    assert check_folder(folder).notes == [note] and not check_folder(folder, channels=1).notes


def test_an_alpha_channel_is_noted_if_it_is_not_kept(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    for i in (3, 5):
        paint(i, mode="RGBA").save(folder / f"im/{i}.png")
    assert check_folder(folder).notes == [
        f"{folder}: 2 of 20 images have an alpha channel, such as im/3.png; transparent pixels become white"
    ]
    assert not check_folder(folder, channels=4).notes
