"""A picture of what is in a data set, to look at before training on it."""

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from denetdm_cli.data.store import Split
from denetdm_cli.utils.files import atomic_file

_COLUMNS = 20
_NARROWEST = 420
_CELL = 84
_GAP = 8
_CAPTION = 18
_MARGIN = 16
_SIDE = 132
_INK = (24, 24, 27)
_FAINT = (96, 96, 104)
_PAPER = (255, 255, 255)
_BAND = (238, 242, 247)
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf", "msyh.ttc")
"""Where a machine has one, for what Pillow's own font lacks, which is all but ASCII: Linux, macOS, Windows."""

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Lettering = tuple[str, _Font]
"""A text as it can be drawn, and the font to draw it in."""


def contact_sheet(
    split: Split,
    path: Path,
    *,
    class_names: Sequence[str],
    bias_names: Sequence[str],
    aligned: Sequence[int],
    title: str,
    rows: int = 4,
) -> None:
    """Write a PNG with a column a class: a row of bias-aligned images and `rows` of bias-conflicting ones.

    Without bias labels all rows show whatever comes first. The choice is the same for the same split: first images in
    data-set order, going through the bias values in turn. Of many classes only the first are shown. Names that would
    look the same get their numbers.

    Args:
        split: the images to choose from.
        path: the file to write.
        class_names: one a class, above its column.
        bias_names: one a bias value, below every image.
        aligned: the bias value tied to each class.
        title: the first line of the sheet.
        rows: rows of bias-conflicting images.
    Raises:
        OSError: the file may not be written.
    """
    classes = min(len(class_names), _COLUMNS)
    columns = [_column(split, label, aligned, rows) for label in range(classes)]
    line = _CELL + _CAPTION + _GAP
    top = _MARGIN + 62
    header = 28
    heading, summary = _lettering(title, 22), _lettering(_summary(split, class_names, aligned), 15)
    widest = max(round(font.getlength(text)) for text, font in (heading, summary))
    width = max(2 * _MARGIN + max(_SIDE + classes * (_CELL + _GAP), widest), _NARROWEST)
    height = top + header + (rows + 1) * line + 2 * _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    class_labels, bias_labels = _labels(class_names, 17), _labels(bias_names, 13)
    draw.text((_MARGIN, _MARGIN), heading[0], _INK, font=heading[1])
    draw.text((_MARGIN, _MARGIN + 31), summary[0], _FAINT, font=summary[1])
    if split.bias is not None and aligned:
        draw.rectangle((0, top + header - 2, width, top + header + line - 2), _BAND)
    for label, column in enumerate(columns):
        left = _MARGIN + _SIDE + label * (_CELL + _GAP)
        _draw(draw, left + _CELL // 2, top + 4, class_labels[label], _INK)
        for row, index in enumerate(column):
            upper = top + header + row * line + (_GAP if row else 0) + 3
            if index is None:
                draw.rectangle((left, upper, left + _CELL - 1, upper + _CELL - 1), outline=(200, 200, 205))
                _draw(draw, left + _CELL // 2, upper + _CELL // 2 - 8, _lettering("none", 13), _FAINT)
                continue
            sheet.paste(_thumbnail(split.images[index]), (left, upper))
            if split.bias is not None:
                _draw(draw, left + _CELL // 2, upper + _CELL + 1, bias_labels[split.bias[index]], _FAINT)
    headings = ["images"] if split.bias is None or not aligned else ["bias-aligned", "bias-conflicting"]
    for row, text in enumerate(headings[: min(rows, 1) + 1]):
        middle = top + header + row * (line + _GAP) + _CELL // 2
        draw.text((_MARGIN, middle), text, _INK, font=ImageFont.load_default(16), anchor="lm")
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _summary(split: Split, class_names: Sequence[str], aligned: Sequence[int]) -> str:
    text = f"{len(split.images):,} images"
    if split.bias is None:
        text += ", no bias labels"
    elif aligned:
        tied = np.asarray(aligned)
        conflicting = int(np.count_nonzero(tied[split.target] != split.bias))
        text += f", {conflicting:,} of them bias-conflicting ({conflicting / len(split.images):.2%})"
    return text + (f"; the first {_COLUMNS} of {len(class_names)} classes" if len(class_names) > _COLUMNS else "")


def _column(split: Split, label: int, aligned: Sequence[int], rows: int) -> list[int | None]:
    """Positions of the images of a class to show, `rows` + 1 in all; None for an empty cell."""
    members = np.flatnonzero(split.target == label)
    if split.bias is None or not aligned:
        chosen: list[int | None] = members[: rows + 1].tolist()
    else:
        tied = aligned[label]
        own = members[split.bias[members] == tied]
        biases = int(split.bias.max()) + 1
        values = [(tied + step) % biases for step in range(1, biases)] if tied < biases else range(biases)
        by_value = [members[split.bias[members] == value][:rows].tolist() for value in values]
        others = [indices[turn] for turn in range(rows) for indices in by_value if turn < len(indices)][:rows]
        chosen = [int(own[0]) if len(own) else None, *others]
    return chosen + [None] * (rows + 1 - len(chosen))


def _thumbnail(image: NDArray[np.uint8]) -> Image.Image:
    height, width = image.shape[:2]
    enlarge = max(height, width) < _CELL
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = _CELL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    cell = Image.new("RGB", (_CELL, _CELL), _PAPER)
    resized = picture.resize(size, Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
    cell.paste(resized, ((_CELL - size[0]) // 2, (_CELL - size[1]) // 2))
    return cell


def _labels(names: Sequence[str], size: int) -> list[_Lettering]:
    """Names cut to the width of a cell, with their numbers before them where some would look the same."""
    shown = [_cut(*_lettering(name, size)) for name in names]
    if len({text for text, _ in shown}) == len(names):
        return shown
    return [_cut(*_lettering(f"{number} {name}", size)) for number, name in enumerate(names)]


def _cut(text: str, font: _Font) -> _Lettering:
    while len(text) > 1 and font.getlength(text) > _CELL + _GAP - 2:
        text = text.rstrip("…")[:-1] + "…"
    return text, font


def _draw(draw: ImageDraw.ImageDraw, centre: int, top: int, label: _Lettering, ink: tuple[int, int, int]) -> None:
    text, font = label
    draw.text((centre, top), text, ink, font=font, anchor="ma")


def _lettering(text: str, size: int) -> _Lettering:
    """A text in the font that has most of its characters (of equal ones the first), the others made plain."""
    text = unicodedata.normalize("NFC", text)
    fonts = [font for name in (None, *_SYSTEM_FONTS) if (font := _font(name, size)) is not None]
    best = max(fonts, key=lambda font: sum(_has(font, character) for character in text))
    return "".join(character if _has(best, character) else _plain(character, best) for character in text), best


@functools.cache
def _font(name: str | None, size: int) -> _Font | None:
    """Pillow's own font, or one of the system; None where the system lacks it."""
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: _Font, character: str) -> bool:
    """Whether a font draws a character as something else than the box that stands for what it lacks."""
    if not character.isprintable():
        return False
    glyph, lacking = font.getmask(character), font.getmask("\ufffe")  # U+FFFE is no character, so no font has it
    return glyph.size != lacking.size or bytes(glyph) != bytes(lacking)


def _plain(character: str, font: _Font) -> str:
    """A letter without its accents, or the code of what is no such letter."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    if letters and all(_has(font, letter) for letter in letters):
        return letters
    return character.encode("unicode_escape").decode("ascii")
