"""Tables that paste well into a terminal, Markdown, LaTeX and a spreadsheet."""

import csv
import re

import pytest

from denetdm_cli.results.tables import TextTable, to_csv

TABLE = TextTable(
    "my_data & more",
    ("model", "seeds", "rule last", "diff."),
    [("shallow", "0-4", "85.22 (0.76)", "-0.38"), ("model.deep=3 | 50 %", "0", "7.00", "+1.50")],
    text_columns=2,
    notes=("* 100 % of x_y",),
)


def test_text_has_columns() -> None:
    lines = TABLE.to_text().splitlines()
    assert lines == [
        "my_data & more",
        "",
        "model                seeds       rule last    diff.",
        "-------------------  -------  ------------  -------",
        "shallow              0-4      85.22 (0.76)    -0.38",
        "model.deep=3 | 50 %  0                7.00    +1.50",
        "",
        "* 100 % of x_y",
    ]


def test_text_is_whole_and_plain() -> None:
    long = "x" * 300
    text = TextTable("", ("a", "b"), [(long, "\x1b[31mred\n"), ("画像", "c")], text_columns=2, notes=("\t",)).to_text()
    assert long in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[3].index("c") == 300 - len("画像") + 2  # these characters are two columns wide


def test_markdown() -> None:
    assert re.sub(" +", " ", re.sub("-+", "-", TABLE.to_markdown())).splitlines() == [
        r"**my\_data & more**",
        "",
        "| model | seeds | rule last | diff. |",
        "|:-|:-|-:|-:|",
        "| shallow | 0-4 | 85.22 (0.76) | -0.38 |",
        r"| model.deep=3 \| 50 % | 0 | 7.00 | +1.50 |",
        "",
        r"- \* 100 % of x\_y",
    ]


def test_latex() -> None:
    lines = [" ".join(line.split()) for line in TABLE.to_latex().splitlines()]
    assert lines[0] == r"\begin{table}"
    assert lines[-1] == r"\end{table}"
    assert r"\caption{my\_data \& more.}" in lines
    assert r"\begin{tabular}{llrr}" in lines
    assert r"shallow & 0--4 & 85.22 (0.76) & $-$0.38 \\" in lines
    assert r"model.deep=3 | 50 \% & 0 & 7.00 & +1.50 \\" in lines
    assert r"\par * 100 \% of x\_y" in lines


@pytest.mark.parametrize("character", list("&%$#_{}~^\\<>"))
def test_latex_leaves_no_special_character(character: str) -> None:
    text = TextTable("", ("a",), [(f"x{character}y",)], text_columns=1).to_latex()
    (cell,) = re.findall(r"x(.*)y", text)
    assert re.fullmatch(r"\\[&%$#_{}]|\\text\w+\{\}|\\\^\{\}|\\ensuremath\{.\}", cell)


def test_csv_is_read_back() -> None:
    rows = [("a,b", 'say "x"', 1 / 3), ("", "two\nlines", 2)]
    text = to_csv(("one", "two", "three"), rows)
    assert list(csv.reader(text.splitlines(keepends=True))) == [
        ["one", "two", "three"],
        ["a,b", 'say "x"', repr(1 / 3)],
        ["", "two\nlines", "2"],
    ]
