"""The authors' models from files, folders, zips and addresses, as a user has them; what fails leaves nothing behind."""

import hashlib
import io
import json
import os
import pickle
import random
import shlex
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_support import call, contents, good, plain, refused
from loopback import Site, cut, dropped, endless, status
from official_reference import Reference

from denetdm_cli.cli import progress
from denetdm_cli.hub import download, fetch
from denetdm_cli.hub.published import DRIVE_ADDRESS
from denetdm_cli.training import checkpoint

PATH = "colored_mnist/debiased_model.th"
HERE = Path("pretrained")
CONVERTED = HERE / "coloredmnist.safetensors"
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
FETCH = ("download-pretrained", "coloredmnist")


def official(dataset: str = "coloredmnist", seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    torch.save(Reference(dataset, "distill", seed).state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    """A file as the official code writes it."""
    return official()


@pytest.fixture(scope="module")
def digest(model: bytes) -> str:
    return hashlib.sha256(model).hexdigest()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # the pauses of gdown


def file(path: str, content: bytes) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
    return Path(path)


def zipped(path: str, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Path(path)


def part() -> Path:
    """What is kept of a broken transfer."""
    (found,) = HERE.glob("coloredmnist.th.download-*.part")
    return found


class TestList:
    def test_says_what_is_known(self) -> None:
        out = good("download-pretrained", "--list").out
        for words in (
            ("coloredmnist", "Colored MNIST", "85.22"),
            ("corruptedcifar10", "Corrupted CIFAR-10", "44.20"),
            ("bffhq", "BFFHQ", "75.70"),
        ):
            assert all(word in out for word in words)
        assert all(word in out for word in ("distill", "unknown", "not published", DRIVE_ADDRESS))
        assert str(CONVERTED) not in out
        assert list(Path().iterdir()) == []

    def test_says_what_is_here(self, model: bytes) -> None:
        good(*FETCH, "--from", file("a.th", model))
        out = good("download-pretrained", "--list").out
        assert str(CONVERTED) in out
        assert f"{len(model) / 2**20:.1f} MiB" in out
        assert str(CONVERTED) not in good("download-pretrained", "--list", "--folder", "elsewhere").out


class TestSources:
    def test_an_address_with_progress(
        self, site: Site, model: bytes, digest: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "_SECONDS_BETWEEN_DATA_LINES", 0.0)
        outcome = good(*FETCH, "--url", f"{site.address}/a.th?token=secret", "--sha256", digest)
        assert outcome.out == f"{CONVERTED}\n"
        assert (
            f"fetching coloredmnist, kB: {len(model) // 1000 + 1:,} of {len(model) // 1000 + 1:,}, 0 s left\n"
            in outcome.err
        )
        assert plain(outcome.err)
        assert "secret" not in outcome.err
        assert set(contents(HERE)) == {"coloredmnist.safetensors", "coloredmnist.th", "pretrained.json"}
        assert (HERE / "coloredmnist.th").read_bytes() == model
        record = json.loads((HERE / "pretrained.json").read_text())["coloredmnist"]
        assert (record["sha256"], record["source"]) == (digest, f"{site.address}/a.th")
        said = checkpoint.load(CONVERTED)[1]["source"]
        assert (said["sha256"], said["published_as"]) == (digest, "coloredmnist")
        again = shlex.split(outcome.err.splitlines()[-1].removeprefix("Next: "))
        refused(3, call(*again[1:]), "DIR")  # which is not there

    def test_an_address_that_goes_on_where_it_broke_off(self, site: Site, model: bytes) -> None:
        site.answers = [cut(600_000), *[dropped] * 3]
        outcome = call(*FETCH, "--url", f"{site.address}/a.th")
        refused(5, outcome, f"{site.address}/a.th", "--from FILE", "the same command resumes there")
        kept = part().stat().st_size
        good(*FETCH, "--url", f"{site.address}/a.th")
        assert site.asked[-1]["Range"] == f"bytes={kept}-"
        assert (HERE / "coloredmnist.th").read_bytes() == model
        assert set(contents(HERE)) == {"coloredmnist.safetensors", "coloredmnist.th", "pretrained.json"}

    def test_a_stop_keeps_what_arrived(self, site: Site) -> None:
        def stop(_: object, __: str, done: int, ___: int) -> None:
            if done > 500:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(progress.DataReport, "advance", stop)
            outcome = call(*FETCH, "--url", f"{site.address}/a.th")
        assert outcome.code == 130
        kept = part().stat().st_size
        assert f"{kept:,} bytes received so far are kept" in outcome.err.splitlines()[-2]
        assert outcome.err.splitlines()[-1] == "stopped; nothing is half-written"
        good(*FETCH, "--url", f"{site.address}/a.th")
        assert site.asked[-1]["Range"] == f"bytes={kept}-"

    def test_a_file_a_folder_and_a_zip(self, model: bytes) -> None:
        source = file(f"given/DeNetDM/{PATH}", model)
        for number, given in enumerate((source, "given", zipped("a.zip", {f"DeNetDM/{PATH}": model}))):
            assert good(*FETCH, "--from", given, "--folder", number).out == f"{number}/coloredmnist.safetensors\n"
        one, two, three = (contents(Path(str(number)))["coloredmnist.th"] for number in range(3))
        assert one == two == three == model

    def test_a_file_put_where_the_message_says(self, model: bytes) -> None:
        file(f"{HERE}/coloredmnist.th", PAGE)
        remedy = call(*FETCH).err.partition("\nwhat to do: ")[2]
        place, _, command = remedy.partition("save it as ")[2].partition(" and run: ")
        file(place, model)
        assert good(*shlex.split(command)[1:]).out == f"{CONVERTED}\n"

    def test_of_several_each_is_tried(self, model: bytes) -> None:
        file(f"given/{PATH}", model)
        file("given/corrupted_cifar10/debiased_model.th", PAGE)
        outcome = call("download-pretrained", "--all", "--from", "given")
        assert outcome.code == 4
        assert outcome.out == f"{CONVERTED}\n"
        assert outcome.err.count("\nerror: ") == 2
        assert outcome.err.count("corrupted_cifar10/debiased_model.th is a web page") == 1
        assert "given/bffhq" not in outcome.err
        assert "Next:" not in outcome.err


class TestDigests:
    def test_one_that_is_given_must_be_right(self, site: Site, digest: str) -> None:
        refused(4, call(*FETCH, "--url", f"{site.address}/a.th", "--sha256", "a" * 64), digest, "a" * 64)
        assert not HERE.exists()
        refused(2, call(*FETCH, "--url", f"{site.address}/a.th", "--sha256", "abc"), "'abc'", "64")

    def test_another_than_the_first_one_stops_with_both(self, model: bytes, digest: str) -> None:
        good(*FETCH, "--from", file("first.th", model))
        before = contents(HERE)
        second = file("second.th", official(seed=1))
        other = hashlib.sha256(second.read_bytes()).hexdigest()
        refused(4, call(*FETCH, "--from", second), "second.th", digest, other, "first.th", "--force")
        (HERE / "coloredmnist.th").unlink()
        CONVERTED.unlink()
        refused(4, call(*FETCH, "--from", second), digest, other)
        assert contents(HERE) == {"pretrained.json": before["pretrained.json"]}
        good(*FETCH, "--from", second, "--force")
        assert json.loads((HERE / "pretrained.json").read_text())["coloredmnist"]["sha256"] == other

    def test_what_is_here_and_the_same_is_done(self, model: bytes) -> None:
        good(*FETCH, "--from", file("first.th", model))
        before = contents(HERE)
        for more in ((), ("--from", "first.th")):
            assert good(*FETCH, *more).out == f"{CONVERTED}\n"
        assert contents(HERE) == before

    @pytest.mark.parametrize("name", ["coloredmnist.th", "coloredmnist.safetensors"])
    def test_what_is_here_and_differs_is_left(self, model: bytes, name: str) -> None:
        good(*FETCH, "--from", file("first.th", model))
        (HERE / name).write_bytes(b"mine")
        refused(4, call(*FETCH), name, hashlib.sha256(b"mine").hexdigest(), "--force")
        assert (HERE / name).read_bytes() == b"mine"


class Code:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path(os.environ["RAN"]),)


class TestBadSources:
    @pytest.fixture(autouse=True)
    def _nothing_is_left(self, tmp_path: Path) -> Iterator[None]:
        yield
        assert not HERE.exists()
        assert not list(tmp_path.rglob("*.part"))

    def test_nobody_listens(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{free.getsockname()[1]}/a.th"
            outcome = call(*FETCH, "--url", address, "--folder", "made/for/it")
        refused(5, outcome, address, "refused", "--from FILE")
        assert list(Path().iterdir()) == []

    def test_an_address_without_the_file(self, site: Site) -> None:
        site.answers = [status(404)]
        outcome = call(*FETCH, "--url", f"{site.address}/a.th")
        refused(5, outcome, "404 Not Found")
        assert "retrying" not in outcome.err

    def test_too_much(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "_SIZE_LIMIT", 1_000_000)
        refused(5, call(*FETCH, "--url", f"{site.address}/a.th"), "more than 0.00 GB")
        site.answers = [endless]
        refused(5, call(*FETCH, "--url", f"{site.address}/a.th"), "more than 0.00 GB")
        refused(4, call(*FETCH, "--from", file("a.th", site.content)), "more than 0.00 GB")

    def test_a_quota_page(self, site: Site) -> None:
        site.content = PAGE
        words = ("is a web page, not a model", "quota is used up", "Look at what ", PATH)
        refused(5, call(*FETCH, "--url", f"{site.address}/a.th"), f"{site.address}/a.th", *words)
        refused(4, call(*FETCH, "--from", file("saved.th", PAGE)), "saved.th", *words)

    def test_a_truncated_download(self, site: Site, model: bytes) -> None:
        site.tag = ""
        site.answers = [cut(100_000)] * 8
        refused(5, call(*FETCH, "--url", f"{site.address}/a.th"), "IncompleteRead")
        site.answers = []
        site.content = model[:100_000]  # broken off before the server had it
        refused(4, call(*FETCH, "--url", f"{site.address}/a.th"), "cut short or damaged")
        refused(4, call(*FETCH, "--from", file("a.th", b"")), "a.th is empty")

    @pytest.mark.parametrize("name", [f"../{PATH}", f"/{PATH}", f"C:\\{PATH}"])
    def test_a_zip_that_climbs_out(self, model: bytes, name: str) -> None:
        refused(4, call(*FETCH, "--from", zipped("a.zip", {name: model})), "a.zip", "leads out of it")
        assert list(Path().iterdir()) == [Path("a.zip")]
        assert not Path("..", PATH).exists()

    def test_a_zip_that_inflates_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "_MEMBER_LIMIT", 1_000_000)
        path = zipped("a.zip", {PATH: bytes(50_000_000)})
        refused(4, call(*FETCH, "--from", path), "50,000,000 bytes, at most 1,000,000")
        forged = bytearray(path.read_bytes())
        for start, offset in ((forged.index(b"PK\1\2"), 24), (0, 22)):
            forged[start + offset : start + offset + 4] = (1000).to_bytes(4, "little")
        refused(4, call(*FETCH, "--from", file("forged.zip", forged)), "cannot be read")

    @pytest.mark.parametrize("packed", [False, True])
    def test_a_pickle_with_code(self, model: bytes, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAN", str(Path("ran").resolve()))
        buffer = io.BytesIO()
        torch.save({"classifier.bias": Code()}, buffer)
        source = zipped("a.zip", {PATH: buffer.getvalue()}) if packed else file("a.th", buffer.getvalue())
        refused(4, call(*FETCH, "--from", source), "could run code", "nothing in it was run")
        assert not Path("ran").exists()
        pickle.loads(pickle.dumps(Code()))
        assert Path("ran").exists(), "it can run"

    def test_another_model(self, model: bytes) -> None:
        state = torch.load(io.BytesIO(model), weights_only=True)
        state["classifier.weight"] = torch.ones(3, 100)
        state["more"] = state.pop("classifier.bias")
        torch.save(state, "a.th")
        words = (
            "missing: classifier.bias",
            "extra: more",
            "classifier.weight is float32[3, 100], not float32[10, 100]",
        )
        refused(4, call(*FETCH, "--from", "a.th"), *words)
        refused(4, call("download-pretrained", "bffhq", "--from", file("a.th", model)), "a model of coloredmnist")

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (("--from", "a", "--url", "http://127.0.0.1:1/x"), 2, ["--from", "--url"]),
            (("--url", "file:///etc/hostname"), 2, ["http(s)"]),
            (("corruptedcifar10", "--sha256", "a" * 64), 2, ["one model"]),
            (("--all",), 2, ["--all"]),
            (("mnist",), 2, ["'mnist'", "coloredmnist"]),
            (("--from", "nowhere"), 4, ["nowhere", "does not exist"]),
            (("--from", "."), 4, [f"there is no {PATH}", "--from FILE"]),
        ],
    )
    def test_options_that_make_no_sense(self, options: tuple[str, ...], code: int, words: list[str]) -> None:
        refused(code, call(*FETCH, *options), *words)


def test_a_name_that_is_given_twice_counts_once(model: bytes) -> None:
    assert good(*FETCH, "coloredmnist", "--from", file("a.th", model)).out == f"{CONVERTED}\n"
