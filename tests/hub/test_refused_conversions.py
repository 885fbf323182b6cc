import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from official_reference import Reference
from safetensors.torch import save_file
from torch import Tensor, nn

from denetdm_cli.hub.convert import convert_to_ours
from denetdm_cli.utils.errors import CheckpointError


@pytest.fixture(scope="module")
def mnist() -> OrderedDict[str, Tensor]:
    return Reference("coloredmnist", "train-poe").state_dict()


@pytest.fixture
def th(tmp_path: Path, mnist: OrderedDict[str, Tensor]) -> Path:
    """Stage 1 of Colored MNIST as the official code saves it."""
    path = tmp_path / "debiased_model.th"
    torch.save(mnist, path)
    return path


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(os.environ["BOMB"]),)


@pytest.mark.parametrize("writer", ["pickle", "oldest pickle", "torch", "torch, old format", "among tensors"])
def test_code_in_a_file_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist: OrderedDict[str, Tensor], writer: str
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, out = tmp_path / "model.th", tmp_path / "out.safetensors"
    if "pickle" in writer:
        path.write_bytes(pickle.dumps(Bomb(), protocol=0 if "oldest" in writer else 2))
    else:
        content = {**mnist, "zz": Bomb()} if "among" in writer else Bomb()
        torch.save(content, path, _use_new_zipfile_serialization="old" not in writer)
    with pytest.raises(CheckpointError) as caught:
        convert_to_ours(path, out)
    if writer in ("torch", "torch, old format", "among tensors"):
        assert "nothing in it was run" in caught.value.what
        assert re.search(r"it calls [\w.]*(touch|Path|getattr)", caught.value.what)
    assert sorted(tmp_path.iterdir()) == [path]
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:  # and the bomb is live
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
        pickle.load(file) if "pickle" in writer else torch.load(file, weights_only=False)
    assert (tmp_path / "exploded").exists()


def _whole_model(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def _script(path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    torch.jit.save(torch.jit.trace(Twice(), torch.ones(1)), path)


def _zip(*members: tuple[str, bytes], kind: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, content in members:
                archive.writestr(name, content)

    return write


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _tensors(state: object) -> Callable[[Path], None]:
    return lambda path: torch.save(state, path)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:Validating sparse", "ignore:The PyTorch API of nested", "ignore:TypedStorage"
)
@pytest.mark.parametrize(
    ("write", "message", "fix"),
    [
        (lambda path: None, "no file", "path"),
        (lambda path: path.mkdir(), "a folder, not a file", "official"),
        (_bytes(b""), "is empty", "again"),
        (_bytes(b"\xef\xbb\xbf\n <!DOCTYPE html><html><title>Google Drive - Quota exceeded"), "web page", "browser"),
        (_bytes(b"<HTML><head>"), "web page", "browser"),
        (_bytes(b"\x89PNG and so on"), "no file of weights", "official"),
        (_bytes(b"PK\x03\x04 and no more"), "cut short or damaged", "again"),
        (_bytes(b"\x80\x02}q\x00."), "cut short or damaged", "again"),
        (_zip(("readme.txt", b"x"), ("coloredmnist/model.th", b"x")), "something else.*readme.txt", "Unpack"),
        (_zip(), "something else than a model$", "Unpack"),
        (_zip(("a/data.pkl", b"\0" * 10**6), kind=zipfile.ZIP_DEFLATED), "more than its own size", "published"),
        (_zip(("a/data.pkl", b"}."), ("a/version", b"3")), "holds an empty state dict", "state_dict"),
        (lambda path: save_file({"a": torch.ones(2)}, path), "safetensors file", "--to official"),
        (_whole_model, r"it calls torch\.nn\.modules\.linear\.Linear", "state_dict"),
        (_script, "TorchScript archive, which holds code", "state_dict"),
        (_tensors([torch.ones(1)]), "holds a list, not a state dict", "state_dict"),
        (_tensors(torch.ones(1)), "holds a Tensor, not", "state_dict"),
        (_tensors({}), "empty state dict", "state_dict"),
        (_tensors({"model": {"a": torch.ones(1)}}), "plain tensors, such as 'model'", "state_dict"),
        (_tensors({"state_dict": {"state_dict": {"a": torch.ones(1)}}}), "such as 'state_dict'", "state_dict"),
        (_tensors({1: torch.ones(1)}), "such as 1", "state_dict"),
        (_tensors({"a": torch.eye(3).to_sparse()}), "such as 'a'", "state_dict"),
        (_tensors({"a": torch.ones(3, device="meta")}), "such as 'a'", "state_dict"),
        (
            lambda path: torch.save({"a": torch.nested.nested_tensor([torch.ones(2)])}, path),
            "such as 'a'",
            "state_dict",
        ),
        (_tensors({"a": torch.ones(1).expand(10**12)}), "such as 'a'", "state_dict"),
        (_tensors({"a\x1b[31m": torch.ones(1)}), r"such as 'a\\x1b\[31m'", "state_dict"),
        (_zip(("a\x1b[31m", b"x")), r"its first file is 'a\\x1b\[31m'", "Unpack"),
        (_tensors({"a": torch.ones(1)}), "none of the official code's models", "Colored MNIST"),
    ],
)
def test_what_is_no_official_model_is_refused(
    tmp_path: Path, write: Callable[[Path], None], message: str, fix: str
) -> None:
    path = tmp_path / "a.th"
    write(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert_to_ours(path, tmp_path / "out.safetensors")
    assert re.search(message, caught.value.what)
    assert str(path) in caught.value.what
    assert "weights_only" not in str(caught.value)
    assert all(part.isprintable() for part in caught.value.args)
    assert fix in caught.value.fix
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("keep", [0.001, 0.3, 0.999])
def test_a_file_cut_short_is_refused(
    tmp_path: Path, mnist: OrderedDict[str, Tensor], keep: float, old_format: bool
) -> None:
    path = tmp_path / "a.th"
    torch.save(mnist, path, _use_new_zipfile_serialization=not old_format)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CheckpointError, match=r"cut short or damaged: .+"):
        convert_to_ours(path, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [path]


def test_an_altered_byte_is_noticed(th: Path) -> None:
    content = bytearray(th.read_bytes())
    content[len(content) // 2] ^= 64
    th.write_bytes(content)
    with pytest.raises(CheckpointError, match="has another checksum"):
        convert_to_ours(th, th.with_suffix(".safetensors"))
