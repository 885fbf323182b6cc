from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomCrop, RandomResizedCrop
from torchvision.transforms import functional as reference

from denetdm_cli.config.schema import DataConfig
from denetdm_cli.data.augment import Crops, Normalisation, draw_crops

CPU = torch.device("cpu")
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]
LEVEL = 1 / 255
"""Of pixels from 0 to 255; results must agree much closer than to a pixel value."""


def _config(**changes: object) -> DataConfig:
    plain: dict[str, object] = {
        "cache": "auto",
        "mean": None,
        "std": None,
        "random_crop_padding": 0,
        "random_resized_crop": None,
        "horizontal_flip": False,
    }
    return DataConfig.model_validate({**plain, **changes})


def _images(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=_seeded(7))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _each(images: Tensor, crops: Crops, change: Callable[..., Tensor]) -> Tensor:
    """The images one by one, each by the plain numbers of its crop, and mirrored by torchvision."""
    columns = (part.tolist() for part in (crops.top, crops.left, crops.height, crops.width, crops.flip))
    changed = []
    for image, top, left, height, width, flip in zip(images, *columns, strict=True):
        result = change(image, top, left, height, width)
        changed.append(reference.hflip(result) if flip else result)
    return torch.stack(changed)


@pytest.mark.parametrize(("height", "width", "padding"), [(9, 9, 4), (6, 11, 2), (8, 5, 0), (4, 4, 9)])
@pytest.mark.parametrize("flip", [True, False])
def test_padded_crops_and_mirror_images_are_torchvisions(height: int, width: int, padding: int, flip: bool) -> None:
    images = _images(40, height, width)
    config = _config(random_crop_padding=padding, horizontal_flip=flip)
    crops = draw_crops(config, len(images), height, width, _seeded(0))
    found = crops.of(images)
    expected = _each(images, crops, lambda image, *window: reference.crop(reference.pad(image, [padding]), *window))
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(found, expected)
    assert bool(crops.flip.any()) == flip


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (24, 40), (224, 224)])
@pytest.mark.parametrize("scale", [[0.08, 1.0], [1.0, 1.0], [0.001, 0.01]])
def test_resized_crops_are_torchvisions(height: int, width: int, scale: list[float]) -> None:
    images = _images(20, height, width)
    config = _config(random_resized_crop=scale, horizontal_flip=True)
    crops = draw_crops(config, len(images), height, width, _seeded(0))
    found = crops.of(images)
    assert found.dtype == torch.float32
    assert found.is_contiguous()

    def resized(image: Tensor, *window: int) -> Tensor:
        return reference.resized_crop(image, *window, size=[height, width], antialias=False)

    assert torch.allclose(found, _each(images.float(), crops, resized), rtol=0, atol=LEVEL)
    # torchvision rounds the pixels of uint8 images.
    assert torch.allclose(found, _each(images, crops, resized).float(), rtol=0, atol=0.5 + LEVEL)

    def interpolated(image: Tensor, top: int, left: int, tall: int, wide: int) -> Tensor:
        crop = image[None, :, top : top + tall, left : left + wide]
        return F.interpolate(crop, (height, width), mode="bilinear", antialias=False)[0]

    assert torch.allclose(found, _each(images.float(), crops, interpolated), rtol=0, atol=LEVEL)


def test_the_whole_image_is_itself_when_resized() -> None:
    images = _images(5, 32, 48)
    whole = draw_crops(_config(horizontal_flip=True), 5, 32, 48, _seeded(0))
    resized = Crops(whole.top, whole.left, whole.height, whole.width, whole.flip, margin=None)
    assert torch.equal(resized.of(images), whole.of(images).float())


def test_nothing_outside_a_crop_is_read() -> None:
    images = _images(30, 20, 20)
    crops = draw_crops(_config(random_resized_crop=[0.1, 0.5]), 30, 20, 20, _seeded(0))
    changed = 255 - images
    for number, (image, original) in enumerate(zip(changed, images, strict=True)):
        top, left = int(crops.top[number]), int(crops.left[number])
        window = (..., slice(top, top + int(crops.height[number])), slice(left, left + int(crops.width[number])))
        image[window] = original[window]
    assert not torch.equal(changed, images)
    assert torch.equal(crops.of(changed), crops.of(images))


def test_pixels_are_exactly_divided_by_255_where_nothing_is_normalised() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    for config in (None, _config()):
        assert torch.equal(Normalisation(config, CPU)(images), torch.div(images, 255))


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
def test_normalised_pixels_are_torchvisions(mean: list[float], std: list[float]) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    expected = reference.normalize(images.float() / 255, mean, std)
    normalise = Normalisation(_config(mean=mean, std=std), CPU)
    kept = images.clone()
    assert torch.allclose(normalise(images), expected, rtol=0, atol=1e-6)
    assert torch.equal(images, kept)
    assert torch.allclose(normalise(images.float()), expected, rtol=0, atol=1e-6)


def test_the_steps_come_in_the_official_order() -> None:
    images = _images(30, 16, 16)
    config = _config(mean=MEAN, std=STD, random_crop_padding=4, horizontal_flip=True)
    crops = draw_crops(config, 30, 16, 16, _seeded(0))

    def cropped(image: Tensor, *window: int) -> Tensor:
        return reference.crop(reference.pad(image, [4]), *window)

    # Black pixels of the margin are normalised like all others.
    expected = reference.normalize(_each(images, crops, cropped).float() / 255, MEAN, STD)
    assert torch.allclose(Normalisation(config, CPU)(crops.of(images)), expected, rtol=0, atol=1e-6)


def _differ(found: Tensor, expected: Tensor, bins: int) -> float:
    """How far two samples of one distribution may seem apart: chi-square, in standard deviations above its mean."""
    edges = np.histogram_bin_edges(torch.cat([found, expected]).numpy(), bins)
    a, b = (np.histogram(values.numpy(), edges)[0] for values in (found, expected))
    a, b = a[a + b > 20], b[a + b > 20]
    freedom = max(len(a) - 1, 1)
    scale = np.sqrt(b.sum() / a.sum())
    return float((((a * scale - b / scale) ** 2 / (a + b)).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(32, 32, [0.08, 1.0]), (224, 224, [0.5, 1.0]), (40, 64, [0.2, 0.9]), (64, 24, [0.6, 1.0])],
)
def test_resized_crops_are_drawn_as_torchvision_draws_them(height: int, width: int, scale: list[float]) -> None:
    count = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    ratio = [3 / 4, 4 / 3]
    expected = torch.tensor([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]).T
    crops = draw_crops(_config(random_resized_crop=scale), 3 * count, height, width, _seeded(1))
    found = torch.stack([crops.top, crops.left, crops.height, crops.width])
    for ours, theirs in zip(found, expected, strict=True):
        assert _differ(ours, theirs, 16) < 4
    # And together: a crop's area, its shape, and where its centre is.
    for combine in (
        lambda window: window[2] * window[3],
        lambda window: (window[3] / window[2]).log(),
        lambda window: 2 * window[0] + window[2],
        lambda window: 2 * window[1] + window[3],
    ):
        assert _differ(combine(found), combine(expected), 16) < 4
    assert bool((crops.top >= 0).all() and (crops.top + crops.height <= height).all())
    assert bool((crops.left >= 0).all() and (crops.left + crops.width <= width).all())


def test_the_comparison_of_distributions_sees_a_small_difference() -> None:
    steps = torch.rand(12000, generator=_seeded(0)), torch.rand(4000, generator=_seeded(1))
    assert _differ(*steps, 16) < 4
    assert _differ(steps[0] ** 1.2, steps[1], 16) > 4


@pytest.mark.parametrize(
    ("height", "width", "share"),
    # The whole area would need a shape that is out of bounds; hardly anything of it would be no pixel.
    [(10, 100, 1.0), (100, 10, 1.0), (31, 70, 1.0), (71, 30, 1.0), (10, 12, 1e-9)],
)
def test_images_of_which_no_crop_fits_get_the_central_one(height: int, width: int, share: float) -> None:
    crops = draw_crops(_config(random_resized_crop=[share, share]), 50, height, width, _seeded(0))
    central = RandomResizedCrop.get_params(torch.empty(3, height, width), [share, share], [3 / 4, 4 / 3])
    found = torch.stack([crops.top, crops.left, crops.height, crops.width], dim=1)
    assert found.tolist() == [list(central)] * 50


def test_offsets_and_mirror_images_are_even_and_independent() -> None:
    count, padding = 50_000, 4
    crops = draw_crops(_config(random_crop_padding=padding, horizontal_flip=True), count, 8, 8, _seeded(0))
    cells = (crops.top * 9 + crops.left) * 2 + crops.flip
    observed = torch.bincount(cells, minlength=162).double()
    assert len(observed) == 9 * 9 * 2
    expected = count / 162
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert abs(chi_square - 161) < 4 * (2 * 161) ** 0.5
    torch.manual_seed(0)
    image = torch.empty(3, 8 + 2 * padding, 8 + 2 * padding)
    theirs = torch.tensor([RandomCrop.get_params(image, (8, 8)) for _ in range(2000)])
    assert (int(crops.top.min()), int(crops.top.max())) == (int(theirs[:, 0].min()), int(theirs[:, 0].max())) == (0, 8)


def test_crops_depend_on_the_generator_alone() -> None:
    config = _config(random_resized_crop=[0.1, 1.0], horizontal_flip=True)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (draw_crops(config, 100, 20, 20, _seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("top", "left", "height", "width", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
