from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denetdm_cli.data import contact_sheet as preview
from denetdm_cli.data.contact_sheet import contact_sheet
from denetdm_cli.data.store import Split

CLASSES = 4
NAMES = ["cat", "dog", "horse", "ship"]
COLOURS = ["red", "green", "blue", "white"]


def make_split(per_group: int = 2, size: int = 12) -> Split:
    """Every image has one colour of its own, by which it is found again on the sheet."""
    groups = [(t, b) for _ in range(per_group) for t in range(CLASSES) for b in range(CLASSES)]
    target, bias = (np.array(column, np.uint8) for column in zip(*groups, strict=True))
    images = np.empty((len(groups), size, size, 3), np.uint8)
    for index in range(len(groups)):
        images[index] = own_colour(index)
    return Split(images, target, bias)


def own_colour(index: int) -> tuple[int, int, int]:
    return (10 + index * 5, 200 - index * 3, 7)


def draw(path: Path, split: Split, *, rows: int = 3, **changes: object) -> np.ndarray:
    options: dict[str, object] = {"class_names": NAMES, "bias_names": COLOURS, "title": "Toy", "aligned": range(4)}
    options |= changes
    contact_sheet(split, path, rows=rows, **options)  # type: ignore[arg-type]
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def places(sheet: np.ndarray, split: Split) -> dict[int, tuple[float, float]]:
    """Centre (y, x) of every image shown."""
    found = {}
    for index in range(len(split.images)):
        ys, xs = np.nonzero((sheet == own_colour(index)).all(axis=2))
        if len(ys) > 500:
            found[index] = (float(ys.mean()), float(xs.mean()))
    return found


@pytest.mark.parametrize("size", [12, 300])
def test_one_row_aligned_then_conflicting_a_column_a_class(tmp_path: Path, size: int) -> None:
    split = make_split(size=size)
    shown = places(draw(tmp_path / "sheet.png", split), split)
    assert len(shown) == 4 * CLASSES
    columns = sorted({x for _, x in shown.values()})
    lines = sorted({y for y, _ in shown.values()})
    assert (len(columns), len(lines)) == (CLASSES, 4)
    for index, (y, x) in shown.items():
        assert columns.index(x) == split.target[index]
        assert (lines.index(y) == 0) == (split.bias[index] == split.target[index])
    for label in range(CLASSES):
        values = {int(split.bias[index]) for index in shown if split.target[index] == label}
        assert values == set(range(CLASSES)), "every bias value is shown before one is shown twice"


def test_labels_are_drawn(tmp_path: Path) -> None:
    split = make_split()
    sheet = draw(tmp_path / "sheet.png", split)
    top = min(y for y, _ in places(sheet, split).values())
    for change in ({"title": "Other"}, {"class_names": ["kiwi", *NAMES[1:]]}, {"bias_names": ["gold", *COLOURS[1:]]}):
        other = draw(tmp_path / "other.png", split, **change)
        ys = np.nonzero((other != sheet).any(axis=2))[0]
        assert len(ys)
        assert (ys.max() < top) == ("bias_names" not in change)
    left = min(x for _, x in places(sheet, split).values()) - 60
    ink = np.nonzero((sheet[:, : int(left)] < 100).all(axis=2))[0]
    assert ink.max() > top - 20, "row labels stand to the left of the images"


def test_same_split_same_bytes(tmp_path: Path) -> None:
    draw(tmp_path / "one.png", make_split())
    draw(tmp_path / "two.png", make_split())
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_missing_groups_leave_a_gap(tmp_path: Path) -> None:
    whole = make_split()
    keep = (whole.target != 2) | (whole.bias == 1)
    split = Split(whole.images[keep], whole.target[keep], whole.bias[keep])
    sheet = draw(tmp_path / "sheet.png", split)
    assert len(places(sheet, whole)) == 4 * (CLASSES - 1) + 2
    assert sheet.shape == draw(tmp_path / "whole.png", whole).shape


def test_long_names_stay_in_their_column(tmp_path: Path) -> None:
    split = make_split()
    names = ["cat", "an extraordinarily long name of a class", "horse", "ship"]
    long = draw(tmp_path / "long.png", split, class_names=names)
    short = draw(tmp_path / "short.png", split)
    columns = sorted({x for _, x in places(short, split).values()})
    xs = np.nonzero((long != short).any(axis=2))[1]
    half = (columns[1] - columns[0]) / 2
    assert columns[1] - half < xs.min() <= xs.max() < columns[1] + half


LONG = "an extraordinarily long name of class"


@pytest.fixture(params=["fonts of the system", "Pillow's own font"])
def _fonts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Pillow's own font":
        monkeypatch.setattr(preview, "_SYSTEM_FONTS", ())


@pytest.mark.usefixtures("_fonts")
@pytest.mark.parametrize(
    "names",
    [
        ("猫", "犬"),
        ("собака", "кошка"),
        ("Käse", "Kase"),
        ("a\nb", "a\tb"),
        ("\u200b1", "1"),
        (f"{LONG} 1", f"{LONG} 2"),
    ],
    ids=ascii,
)
def test_names_of_any_script_and_length_can_be_told_apart(tmp_path: Path, names: tuple[str, str]) -> None:
    """Of two columns with equal images, the names alone differ."""
    images = np.zeros((2, 8, 8, 3), np.uint8)
    split = Split(images, np.array([0, 1], np.uint8), np.array([0, 1], np.uint8))
    sheet = draw(tmp_path / "sheet.png", split, class_names=names, bias_names=names, aligned=(0, 1), rows=0)
    ys, xs = np.nonzero((sheet == 0).all(axis=2))
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    step = right - left - 84
    first, second = (sheet[:, begin - 4 : begin + 88] for begin in (left, left + step))
    assert (first[top:bottom] == second[top:bottom]).all()
    assert (first[top - 28 : top] != second[top - 28 : top]).any(), "class names"
    assert (first[bottom:] != second[bottom:]).any(), "names of bias values"


@pytest.mark.usefixtures("_fonts")
@pytest.mark.parametrize("name", ["Käse", "собака", "猫", "🐱", "a\nb", "cafe\u0301"])
def test_no_letter_is_a_box(name: str) -> None:
    text, font = preview._lettering(name, 17)
    box = font.getmask("\ufffe")
    glyphs = [font.getmask(letter) for letter in text]
    assert all(glyph.size != box.size or bytes(glyph) != bytes(box) for glyph in glyphs)
    assert text.isprintable()


def test_a_font_of_the_system_spares_what_it_has() -> None:
    if preview._font("DejaVuSans.ttf", 17) is None:
        pytest.skip("DejaVu Sans is not installed")
    assert preview._lettering("Käse, собака", 17)[0] == "Käse, собака"
    assert preview._lettering("Käse, собака, 猫", 17)[0].startswith("Käse, собака, ")


def test_what_no_font_has_is_written_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "_SYSTEM_FONTS", ())
    plain = {
        "Käse": "Kase",
        "cafe\u0301": "cafe",
        "Straße": "Stra\\xdfe",
        "猫": "\\u732b",
        "a\nb": "a\\nb",
    }
    assert {name: preview._lettering(name, 17)[0] for name in plain} == plain


def test_a_long_title_makes_a_wide_sheet(tmp_path: Path) -> None:
    split = make_split()
    usual = draw(tmp_path / "usual.png", split)
    wide = draw(tmp_path / "wide.png", split, title="M" * 60)
    assert wide.shape[1] > usual.shape[1]
    assert (wide[:50, -preview._MARGIN + 4 :] == 255).all(), "it ends before the margin"
    assert (wide[:50] < 100).any()


def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "new" / "sheet.png", make_split())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]
    before = (tmp_path / "new" / "sheet.png").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path / "new" / "sheet.png", make_split(1))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]
    assert (tmp_path / "new" / "sheet.png").read_bytes() == before


def test_without_bias_labels_the_first_images_of_each_class_are_shown(tmp_path: Path) -> None:
    split = make_split()
    bare = Split(split.images, split.target, None)
    sheet = draw(tmp_path / "sheet.png", bare, bias_names=(), aligned=())
    found = places(sheet, bare)
    assert sorted(found) == sorted(np.concatenate([np.flatnonzero(split.target == t)[:4] for t in range(CLASSES)]))


def test_any_bias_value_can_be_the_one_of_a_class(tmp_path: Path) -> None:
    split = make_split()
    found = places(draw(tmp_path / "sheet.png", split, aligned=(2, 2, 0, 0)), split)
    by_column = sorted(found.items(), key=lambda item: item[1][::-1])
    tops = [min((item for item in by_column[c * 4 : c * 4 + 4]), key=lambda item: item[1][0])[0] for c in range(4)]
    assert split.bias is not None
    assert [int(split.bias[index]) for index in tops] == [2, 2, 0, 0]


def test_of_many_classes_only_the_first_are_shown(tmp_path: Path) -> None:
    split = Split(np.zeros((200, 8, 8, 3), np.uint8), np.arange(200).astype(np.uint8), None)
    names = [str(label) for label in range(200)]
    sheet = draw(tmp_path / "sheet.png", split, class_names=names, bias_names=(), aligned=())
    assert sheet.shape[1] < 2500
