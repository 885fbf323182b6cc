"""What the README and the pages below docs/ hold: code blocks, commands, links and headings."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(
    r"(?:^|&& |; |srun )((?:denetdm|pip|python|pytest|torchrun|tensorboard)\b[^\n|&;]*)", re.MULTILINE
)
_PROGRAM = re.compile(r"torchrun .* -m denetdm_cli ")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [text for kind, text in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands() -> dict[str, str]:
    """Every command line in a block of sh, and the first page that has it."""
    found: dict[str, str] = {}
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in _COMMAND.findall(block.replace("\\\n", " ")):
                found.setdefault(" ".join(line.partition(" #")[0].split()), name(page))
    return found


def as_denetdm(command: str) -> str | None:
    """The denetdm command that a line runs, also through torchrun; None where it runs something else."""
    command = _PROGRAM.sub("denetdm ", command)
    return command if command.startswith("denetdm ") else None


def without_blocks(page: Path) -> str:
    """The prose of a page."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[str]:
    """Targets of the links and pictures of a page, but for addresses of the web."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if not target.startswith(("http://", "https://")):
            yield target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page), flags=re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = sum(other == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", other) is not None for other in found)
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def extras() -> set[str]:
    """The extras of the package."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    return set(re.findall(r"^(\w+) = ", section, flags=re.MULTILINE))
