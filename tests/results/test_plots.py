"""Pictures: what they show, that they are labelled, and that equal figures give equal bytes."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import child
from run_folders import finished, groups_of

from denetdm_cli.results import plots
from denetdm_cli.results.aggregate import SeedGroup
from denetdm_cli.results.tables import report_tables
from denetdm_cli.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def groups(tmp_path: Path) -> list[SeedGroup]:
    """Two seeds of both stages at 1 %, one of stage 2 at 5 %."""
    runs = tmp_path / "runs"
    for seed in (0, 1):
        finished(runs, seed, 0.5 + 0.1 * seed)
        finished(runs, seed, 0.5 + 0.1 * seed, stage="train-poe")
    finished(runs, 0, 0.7, settings=("dataset.ratio=0.05",))
    return groups_of(runs)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_every_picture_as_png_and_svg(groups: list[SeedGroup], tmp_path: Path) -> None:
    written = list(plots.draw(groups, tmp_path / "deep" / "plots"))
    stems = {
        "coloredmnist-0.01-distill-epochs",
        "coloredmnist-0.01-distill-groups-target",
        "coloredmnist-0.01-train-poe-epochs",
        "coloredmnist-0.01-train-poe-groups-shallow",
        "coloredmnist-0.01-train-poe-groups-deep",
        "coloredmnist-0.01-train-poe-groups-product",
        "coloredmnist-0.05-distill-epochs",
        "coloredmnist-0.05-distill-groups-target",
        "coloredmnist-distill-ratios",
        "coloredmnist-train-poe-ratios",
    }
    assert sorted(path.name for path in written) == names(tmp_path / "deep" / "plots")
    assert {path.name for path in written} == {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    for path in written:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


@pytest.mark.slow
def test_equal_figures_give_equal_bytes(groups: list[SeedGroup], tmp_path: Path) -> None:
    for name in ("one", "two"):
        for _ in plots.draw(groups, tmp_path / name):
            pass
    for name in names(tmp_path / "one"):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert not re.search(rb"dc:date|\b20\d\d-\d\d-\d\d|Matplotlib v", content)


def test_lines_are_means_and_bands_reach_from_the_lowest_to_the_highest(groups: list[SeedGroup]) -> None:
    figure = plots._by_epoch(groups[2])
    _, conflicting, aligned = figure.axes
    labels = [f"{metric} accuracy (%)" for metric in ("unbiased", "conflicting", "aligned")]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    assert aligned.get_xlabel() == "epoch"
    assert [line.get_label() for line in conflicting.lines] == ["shallow", "deep", "product"]
    assert len({line.get_color() for line in conflicting.lines}) == 3
    assert len({line.get_linestyle() for line in conflicting.lines}) == 3
    assert list(map(float, aligned.lines[0].get_ydata())) == pytest.approx([66, 67])  # type: ignore[arg-type]
    band: Any = aligned.collections[0]
    assert {round(float(y), 6) for _, y in band.get_paths()[0].vertices} == {61, 62, 71, 72}


def test_accuracy_by_ratio_is_beside_the_papers(groups: list[SeedGroup]) -> None:
    (axes,) = plots._by_ratio(groups[:2]).axes
    assert axes.get_xlabel() == "conflict ratio of the training images (%)"
    assert axes.get_ylabel() == "unbiased accuracy (%)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5"]
    points: dict[str, Any] = {part.get_label(): part for part in axes.containers}
    assert list(points) == ["rule last", "rule valid", "rule paper (test data)", "DeNetDM, the paper"]
    assert list(points["rule last"].lines[0].get_ydata()) == pytest.approx([55, 70])
    assert list(points["DeNetDM, the paper"].lines[0].get_ydata()) == pytest.approx([85.22, 93.54])
    (bars,) = points["DeNetDM, the paper"].lines[2]
    assert bars.get_segments()[0][:, 1] == pytest.approx([85.22 - 0.76, 85.22 + 0.76])
    others = [line for line in axes.lines if line.get_color() == plots._GREY]
    assert len(others) == 5


def test_another_method_has_its_own_row_of_the_paper(tmp_path: Path) -> None:
    finished(tmp_path, 0, 0.5, stage="erm")
    (axes,) = plots._by_ratio(groups_of(tmp_path)).axes
    points: dict[str, Any] = {part.get_label(): part for part in axes.containers}
    assert list(points["ERM, the paper"].lines[0].get_ydata()) == pytest.approx([50.34])
    assert axes.get_title().splitlines()[0] == "coloredmnist, erm"


def test_a_group_matrix_is_the_mean_and_says_what_is_empty(groups: list[SeedGroup]) -> None:
    figure = plots._group_matrix(groups[0], "target")
    assert figure is not None
    axes, bar = figure.axes
    assert axes.images[0].get_array().filled(-1).tolist() == [pytest.approx(row) for row in ([55, 35], [45, -1])]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.texts] == ["55", "35", "45", "-"]
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("bias value", "target class", "accuracy (%)")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["red", "blue"]


def test_other_settings_are_said_and_have_files_of_their_own(tmp_path: Path) -> None:
    finished(tmp_path / "runs" / "a", 0, 0.5)
    finished(tmp_path / "runs" / "b", 0, 0.5, settings=("distill.epochs=2",))
    preset, other = groups_of(tmp_path / "runs")
    assert "distill.epochs=2" in plots._by_epoch(other).axes[0].get_title()
    assert "distill.epochs" not in plots._by_epoch(preset).axes[0].get_title()
    assert plots._name(preset) != plots._name(other)


@pytest.mark.slow
def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Neither formulas nor control characters."""
    folder = finished(tmp_path / "runs", 0, 0.5)
    document = json.loads((folder / "results.json").read_text())
    document["dataset"] |= {"class_names": ["$a_$", "b\x1b"], "bias_names": [r"$\frac$", "$^$"]}
    document["config"]["dataset"] |= {"name": "folder", "folder": "costs $\\x$ \x07"}
    (folder / "results.json").write_text(json.dumps(document))
    (group,) = groups_of(tmp_path / "runs")
    assert list(plots.draw([group], tmp_path / "plots"))
    figure = plots._group_matrix(group, "target")
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["$a_$", r"b\x1b"]
    assert figure.axes[0].get_title().splitlines()[0].startswith(r"costs $\x$ \x07, distill")


def test_titles_say_the_stage_and_how_many_seeds(groups: list[SeedGroup]) -> None:
    two, one, branches = (plots._by_epoch(group) for group in groups)
    assert two.axes[0].get_title().splitlines() == [
        "coloredmnist, distill, 1 % conflicting",
        "mean and range of 2 seeds",
    ]
    assert one.axes[0].get_title().splitlines()[1] == "1 seed"
    assert "train-poe" in branches.axes[0].get_title()
    assert [axes.get_ylabel().split()[0] for axes in two.axes] == ["unbiased", "conflicting", "aligned"]


def test_a_file_in_the_place_of_the_folder(groups: list[SeedGroup], tmp_path: Path) -> None:
    (tmp_path / "plots").touch()
    for folder in (tmp_path / "plots", tmp_path / "plots" / "new"):
        with pytest.raises(ConfigError, match="plots is no folder"):
            list(plots.draw(groups, folder))


def test_a_figure_that_only_some_rules_have(tmp_path: Path) -> None:
    folder = finished(tmp_path, 0, 0.5)
    document = json.loads((folder / "results.json").read_text())
    document["rules"]["valid"]["metrics"]["target"]["unbiased"] = None
    (folder / "results.json").write_text(json.dumps(document))
    (group,) = groups_of(tmp_path)
    (axes,) = plots._by_ratio([group]).axes
    labels = [part.get_label() for part in axes.containers]
    assert labels == ["rule last", "rule paper (test data)", "DeNetDM, the paper"]
    (sheet,) = report_tables([group])
    assert sheet.rows[0][5:9] == ["50.00", "-35.22", "-", "-"]


def test_without_bias_labels(tmp_path: Path) -> None:
    folder = finished(tmp_path, 0, 0.5)
    for file in (folder / "results.json", folder / "metrics.jsonl"):
        text = re.sub(r'"(unbiased|aligned|conflicting|worst_group)": [\d.]+', r'"\1": null', file.read_text())
        file.write_text(re.sub(r'"groups": \[\[.*?\]\]', '"groups": null', text))
    (group,) = groups_of(tmp_path)
    assert [axes.get_ylabel() for axes in plots._by_epoch(group).axes] == ["accuracy (%)", "worst class accuracy (%)"]
    assert {path.stem for path in plots.draw([group], tmp_path / "plots")} == {"coloredmnist-0.01-distill-epochs"}


@pytest.mark.parametrize("keep", [None, 0, 1])
def test_metrics_that_are_not_whole(tmp_path: Path, keep: int | None) -> None:
    folder = finished(tmp_path, 0, 0.5)
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.unlink() if keep is None else file.write_text("".join(lines[:keep]))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        list(plots.draw(groups_of(tmp_path), tmp_path / "plots"))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"denetdm\[plots\]"):
        plots.require_matplotlib()


@pytest.mark.slow
def test_no_display_is_needed(tmp_path: Path) -> None:
    finished(tmp_path / "runs", 0, 0.5)
    code = (
        "import sys; sys.argv = ['denetdm', 'report', 'runs', '--plots', 'plots']\n"
        "from denetdm_cli.cli.app import app\n"
        "app(standalone_mode=False); assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = child(
        "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(Path(plots.__file__).parents[2]), "MPLBACKEND": "TkAgg"}
    )
    assert done.returncode == 0, done.stderr
    assert len(names(tmp_path / "plots")) == 6
