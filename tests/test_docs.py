"""The README and docs/: commands that parse, links that resolve, reference pages that are what the code says."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from documentation import (
    PAGES,
    README,
    ROOT,
    anchors,
    as_denetdm,
    blocks,
    commands,
    extras,
    links,
    name,
    without_blocks,
)

from denetdm_cli.cli.app import app
from denetdm_cli.utils import errors, log

SHORTEST_PAGE = 200


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    yield
    log.reset()  # which a --quiet on a page has changed


@pytest.fixture(scope="module")
def generate() -> Any:
    """The module docs/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["commands", "configuration"])
def test_a_reference_page_is_what_the_generator_writes(generate: Any, page: str) -> None:
    committed = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert committed == getattr(generate, page)(), "run: python docs/generate.py"


def test_the_reference_of_commands_names_every_command(generate: Any) -> None:
    reference = generate.commands()
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"\n## denetdm {command}" in reference


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_readme_links_to_every_page() -> None:
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in links(README)}
    assert [name(page) for page in PAGES if page != README and page.resolve() not in linked] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}, which does not exist"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}, a heading that does not exist"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_one_title_and_says_something(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text) > SHORTEST_PAGE


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_of_the_code_that_a_page_names_exist(page: Path) -> None:
    text = without_blocks(page).replace("/NAME.py", "/__init__.py")
    for path in re.findall(r"`([\w/]+/\w+\.py)`", text):
        places = (path, f"denetdm_cli/{path}", f"denetdm_cli/*/{path}")
        assert any(list(ROOT.glob(place)) for place in places), f"{name(page)} names {path}, which does not exist"


def words_of(line: str) -> list[str]:
    """The words of a command after the program's name, with values for what bash would put in."""
    return shlex.split(re.sub(r"\$\(\(.*?\)\)", "0", re.sub(r"\$\{.*?\}", "0.01", line)))[1:]


@pytest.mark.parametrize("line", sorted(filter(None, map(as_denetdm, commands()))))
def test_a_command_parses(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = words_of(line)
    if "--install-completion" in words:
        assert any("--install-completion" in param.opts for param in command.params)
        return
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


def test_the_readme_shows_every_command() -> None:
    text = README.read_text(encoding="utf-8")
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"`denetdm {command}`" in text


def test_pip_installs_this_package_with_extras_that_it_has() -> None:
    found = [line for line in commands() if line.startswith("pip ")]
    assert "pip install -e '.[dev]'" in found
    for line in found:
        assert re.fullmatch(r"pip install (-e )?(\.|'(\.|denetdm)\[[\w,]+\]')", line), line
        assert set(re.findall(r"\w+", line.partition("[")[2])) <= extras(), line


def test_scripts_of_this_repository_exist() -> None:
    for line in commands():
        if line.startswith("python "):
            assert (ROOT / line.split()[1]).is_file(), line


@pytest.mark.parametrize("page", [README, ROOT / "docs/reference/exit-codes.md"], ids=name)
def test_every_exit_code_is_documented(page: Path) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.UserError)]
    codes = {kind.exit_code for kind in kinds} | {0, 1, errors.EXIT_STOPPED, errors.EXIT_INTERRUPTED}
    text = page.read_text(encoding="utf-8")
    assert [code for code in sorted(codes) if not re.search(rf"^\|(.*\|)? {code} \|", text, flags=re.MULTILINE)] == []


def test_every_block_has_a_language() -> None:
    for page in PAGES:
        assert blocks(page, "") == [], name(page)
