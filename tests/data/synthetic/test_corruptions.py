import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from corruption_reference import CONSTANTS, reference
from PIL import Image

from denetdm_cli.data.raw.frost import load_textures
from denetdm_cli.data.synthetic.corruptions import TYPE_0, TYPE_1, corrupt

ALL = (*TYPE_0, *TYPE_1)
DETERMINISTIC = {
    "Brightness", "Contrast", "Saturate", "JPEG", "Pixelate", "Gaussian Blur", "Defocus Blur", "Zoom Blur", "Original",
}  # fmt: skip
SEED = (4, 7)

# Of the published code at level 5, on the first 50 test images of every class (the clean ones have a mean of
# 127.4/124.8/115.6): mean RGB, standard deviation RGB, mean absolute difference to clean and its spread over seeds,
# root mean square difference.
PUBLISHED = {
    "Snow": ((176.9, 175.0, 167.9), (61.7, 61.9, 64.0), 50.63, 0.44, 55.64),
    "Frost": ((159.1, 166.6, 164.7), (51.9, 49.3, 51.4), 42.98, 0.81, 49.64),
    "Fog": ((123.1, 122.1, 118.6), (39.5, 39.4, 40.0), 39.24, 0.13, 48.27),
    "Brightness": ((186.4, 181.8, 166.5), (58.0, 56.4, 66.2), 55.61, 0, 59.94),
    "Contrast": ((126.9, 124.3, 115.1), (34.7, 33.8, 39.4), 36.52, 0, 45.82),
    "Spatter": ((123.5, 119.7, 109.8), (62.7, 63.2, 67.8), 5.27, 0.07, 24.12),
    "Elastic": ((126.9, 124.4, 115.2), (60.8, 60.2, 64.4), 14.03, 0.05, 22.88),
    "JPEG": ((127.4, 124.8, 115.7), (62.7, 62.2, 66.2), 7.27, 0, 9.86),
    "Pixelate": ((127.8, 125.2, 116.0), (61.7, 61.1, 65.3), 8.90, 0, 14.33),
    "Saturate": ((105.7, 98.8, 75.2), (70.1, 61.0, 74.4), 29.39, 0, 44.03),
    "Gaussian Noise": ((126.8, 124.3, 115.2), (66.6, 66.1, 69.4), 19.45, 0.01, 24.56),
    "Shot Noise": ((126.1, 123.6, 114.4), (66.4, 65.8, 69.1), 18.22, 0.01, 23.78),
    "Impulse Noise": ((127.3, 125.0, 116.4), (69.8, 69.3, 72.8), 8.90, 0.05, 37.77),
    "Speckle Noise": ((125.5, 123.1, 113.8), (66.2, 65.7, 68.7), 18.21, 0.02, 25.48),
    "Gaussian Blur": ((126.9, 124.3, 115.2), (58.4, 57.7, 62.1), 9.60, 0, 14.15),
    "Defocus Blur": ((126.9, 124.3, 115.1), (59.2, 58.6, 62.9), 9.49, 0, 14.19),
    "Glass Blur": ((126.9, 124.5, 115.5), (61.9, 61.4, 65.7), 17.82, 0.02, 29.71),
    "Motion Blur": ((126.8, 124.2, 115.0), (58.8, 58.2, 62.6), 15.73, 0.08, 23.82),
    "Zoom Blur": ((126.7, 123.3, 114.1), (58.8, 58.2, 62.4), 16.64, 0, 25.63),
}
PUBLISHED_DIFFERENCES = {
    "Elastic": (20.4, 18.3, 16.9, 14.0),
    "Frost": (44.6, 49.2, 44.5, 43.0),
    "Glass Blur": (11.7, 11.4, 18.6, 17.8),
}


def pictures(count: int) -> np.ndarray:
    """Soft coloured shapes of many contrasts under a grain, and among them black, white, grey and pure colours."""
    random = np.random.RandomState(5)
    coarse = random.uniform(-80, 335, (count, 8, 8, 3))
    contrast = random.uniform(0.1, 1, (count, 1, 1, 1))
    smooth = coarse.repeat(4, 1).repeat(4, 2)
    for axis in (1, 2):
        smooth = (np.roll(smooth, 1, axis) + smooth + np.roll(smooth, -1, axis)) / 3
    images = (128 + contrast * (smooth - 128) + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    images[0], images[1] = 0, 255
    images[2] = np.arange(0, 256, 8)[:, None]
    images[3] = np.eye(3)[np.arange(32) % 3] * 255
    return images


def textures() -> list[np.ndarray]:
    random = np.random.RandomState(6)
    return [random.randint(0, 256, (*size, 3)).astype(np.uint8) for size in ((180, 170), (215, 300), (163, 527))]


def run(images: np.ndarray, name: str, level: int = 5, **options: object) -> np.ndarray:
    return corrupt(images, name, level, **{"seed": SEED, "textures": textures(), **options})


def data_folder() -> Path:
    return Path(os.environ.get("DENETDM_TEST_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """(500, 32, 32, 3): the first 50 test images of every class of CIFAR-10."""
    archive = data_folder() / "cifar10-small.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive} (set DENETDM_TEST_DATA to the folder that holds it)")
    with zipfile.ZipFile(archive) as file:
        names = sorted(n for n in file.namelist() if n.startswith("test/") and n.endswith(".jpg") and n[-8:] < "0050")
        assert len(names) == 500
        return np.stack([np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names])


@pytest.fixture(scope="module")
def real_textures(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, ...]:
    folder = Path(os.environ.get("DENETDM_TEST_FROST") or data_folder() / "frost")
    if not folder.is_dir():
        pytest.skip(f"no frost textures in {folder} (set DENETDM_TEST_FROST to the folder that holds them)")
    return load_textures(tmp_path_factory.mktemp("root"), folder, print)


# What comes out


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ALL)
def test_agrees_with_one_image_at_a_time(name: str, level: int) -> None:
    images = pictures(12)
    difference = run(images, name, level).astype(int) - reference(images, name, level, SEED, textures())
    assert np.mean(np.abs(difference) <= 1) >= 0.999
    # The first four have large areas that are a whole level but for the last bit, which truncation turns into one.
    assert np.mean(difference[4:] == 0) >= 0.98


@pytest.mark.parametrize("name", ["Frost", "JPEG", "Pixelate", "Impulse Noise", "Shot Noise", "Original"])
def test_agrees_to_the_bit(name: str) -> None:
    images = pictures(12)
    for level in range(1, 6):
        assert np.array_equal(run(images, name, level), reference(images, name, level, SEED, textures()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_statistics(photos: np.ndarray, name: str, request: pytest.FixtureRequest) -> None:
    real = request.getfixturevalue("real_textures") if name == "Frost" else None
    mean, std, mad, spread, rmse = PUBLISHED[name]
    seeds = 1 if name in DETERMINISTIC else 4
    made = np.stack([corrupt(photos, name, 5, seed=(seed,), textures=real) for seed in range(seeds)])
    difference = made.astype(np.float32) - photos
    assert made.mean(axis=(0, 1, 2, 3)) == pytest.approx(mean, rel=0.02, abs=3 * spread)
    assert made.std(axis=(1, 2, 3)).mean(axis=0) == pytest.approx(std, rel=0.02, abs=3 * spread)
    assert np.abs(difference).mean() == pytest.approx(mad, abs=max(0.02 * mad, 3 * spread))
    assert np.sqrt(np.square(difference).mean()) == pytest.approx(rmse, rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED_DIFFERENCES)
def test_published_differences_of_other_levels(photos: np.ndarray, name: str, request: pytest.FixtureRequest) -> None:
    real = request.getfixturevalue("real_textures") if name == "Frost" else None
    for level, expected in enumerate(PUBLISHED_DIFFERENCES[name], 2):
        made = [corrupt(photos, name, level, seed=(seed,), textures=real) for seed in range(4)]
        assert np.abs(np.stack(made).astype(np.float32) - photos).mean() == pytest.approx(expected, rel=0.02)


def test_flat_areas_keep_their_level() -> None:
    """The weights of these sum to one, or a truncated white would be 254."""
    flat = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    for name in ("Pixelate", "Defocus Blur", "Motion Blur", "Zoom Blur", "Original"):
        assert np.array_equal(run(flat, name), flat), name


def test_shot_and_impulse_noise_have_the_right_distribution() -> None:
    grey = np.full((200, 32, 32, 3), 100, np.uint8)
    # A photon is 5.1 levels, of which truncation leaves 4.65 on average.
    shot = np.ceil(run(grey, "Shot Noise") / 5.1)
    assert shot.mean() == pytest.approx(100 / 5.1, rel=0.002)
    assert shot.var() == pytest.approx(100 / 5.1, rel=0.01)
    impulse = run(grey, "Impulse Noise")
    assert np.mean(impulse == 0) == pytest.approx(0.035, abs=0.001)
    assert np.mean(impulse == 255) == pytest.approx(0.035, abs=0.001)
    assert set(np.unique(impulse)) == {0, 100, 255}


def test_frost_uses_every_texture_and_never_the_last_offset() -> None:
    """A texture of 33 x 34 has one row and two columns of offsets."""
    marked = [np.zeros((165, 170, 3), np.uint8) for _ in range(5)]
    for number, texture in enumerate(marked):
        texture[2::5, 2::5] = np.arange(34)[:, None] + 50 * number
    made = run(np.zeros((400, 32, 32, 3), np.uint8), "Frost", textures=marked)
    corners = {int(value) for value in made[:, 0, 0, 0]}
    assert corners == {int(0.45 * (column + 50 * number)) for number in range(5) for column in (0, 1)}
    assert np.array_equal(made[:, 0], made[:, 31])


# What the bytes depend on


@pytest.mark.parametrize("name", ALL)
def test_neither_chunks_nor_later_images_change_a_byte(name: str) -> None:
    images = pictures(30)
    before = images.copy()
    for level in (3, 5):
        whole = run(images, name, level)
        assert np.array_equal(run(images, name, level, chunk=7), whole)
        assert np.array_equal(run(images[:11], name, level), whole[:11])
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    assert not np.shares_memory(whole, images)
    assert np.array_equal(images, before)


def test_a_view_a_memory_map_and_no_image_at_all(tmp_path: Path) -> None:
    images = pictures(12)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for name in ALL:
        expected = run(images[::2].copy(), name)
        assert np.array_equal(run(images[::2], name), expected)
        made = run(mapped, name)
        assert type(made) is np.ndarray
        assert np.array_equal(made, run(images, name))
        assert run(images[:0], name).shape == (0, 32, 32, 3)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides(name: str) -> None:
    images = np.repeat(pictures(5)[4:], 6, axis=0)
    state = np.random.get_state()[1].copy()
    made = run(images, name, 3)
    assert np.array_equal(run(images, name, 3), made)
    assert np.array_equal(np.random.get_state()[1], state)
    # Random ones treat equal images differently.
    other = run(images, name, 3, seed=(4, 8))
    assert np.array_equal(made, other) == (name in DETERMINISTIC)
    assert (len(np.unique(made, axis=0)) == 1) == (name in DETERMINISTIC)


def test_corruptions_have_streams_of_their_own() -> None:
    """Gaussian and speckle noise of a white image would otherwise be the same."""
    noise = [run(np.full((1, 32, 32, 3), 128, np.uint8), name) > 128 for name in ("Gaussian Noise", "Speckle Noise")]
    assert np.mean(noise[0] == noise[1]) < 0.6


@pytest.mark.slow  # it starts two processes
def test_threads_change_no_byte() -> None:
    code = (
        "import hashlib; from test_corruptions import *\n"
        "digest = hashlib.sha256()\n"
        "for name in ALL: digest.update(run(pictures(16), name))\n"
        "print(digest.hexdigest())"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path])
    digests = []
    for threads in ("1", "2"):
        settings = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        environment = os.environ | settings | {"PYTHONPATH": paths}
        command = [sys.executable, "-c", code]
        digests.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == hashlib.sha256().digest_size * 2


# Names and wrong arguments


def test_the_names() -> None:
    assert len(TYPE_0) == len(TYPE_1) == 10
    assert set(ALL) == set(CONSTANTS)
    assert TYPE_0[0] == "Snow"
    assert TYPE_0[7] == "JPEG"
    assert TYPE_1[2] == "Impulse Noise"
    assert TYPE_1[-1] == "Original"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Rain"}, "no corruption 'Rain'"),
        ({"level": 0}, "level 0"),
        ({"level": 6}, "level 6"),
        ({"images": np.zeros((2, 28, 28, 3), np.uint8)}, r"\(2, 28, 28, 3\)"),
        ({"images": np.zeros((32, 32, 3), np.uint8)}, r"\(32, 32, 3\)"),
        ({"images": np.zeros((2, 32, 32, 3))}, "float64"),
        ({"textures": None}, "needs textures"),
        ({"textures": [np.zeros((160, 300, 3), np.uint8)]}, r"\(32, 60, 3\)"),
        ({"textures": [np.zeros((300, 300, 4), np.uint8)]}, r"\(60, 60, 4\)"),
        ({"textures": [np.zeros((300, 300), np.uint8)]}, r"\(60, 60\)"),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    arguments = {"images": pictures(4), "name": "Frost", "level": 2, "seed": (0,), "textures": textures()} | change
    with pytest.raises(ValueError, match=message):
        corrupt(**arguments)
