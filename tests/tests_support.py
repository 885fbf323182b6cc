"""Data that tests make for themselves."""

import pickletools

import numpy as np

from denetdm_cli.data.raw.mnist import Mnist


def glyph_mnist(train: int, test: int) -> Mnist:
    """A stand-in for MNIST at 18x18 pixels: ten noisy, jittered shapes, the classes in turn, the same bytes everywhere.

    Hard enough that a network learns the colour first, which is what the method is about.
    """
    shapes = np.kron(np.random.RandomState(7).rand(10, 7, 7) < 0.35, np.ones((2, 2))) > 0

    def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.RandomState(seed)
        labels = (np.arange(count) % 10).astype(np.uint8)
        shape = shapes[labels] ^ (random.rand(count, 14, 14) < 0.15)
        ink = (shape * random.uniform(120, 255, (count, 14, 14))).astype(np.uint8)
        images = np.zeros((count, 18, 18), np.uint8)
        for image, glyph, (down, right) in zip(images, ink, random.randint(0, 5, (count, 2)), strict=True):
            image[down : down + 14, right : right + 14] = glyph
        return images, labels

    return Mnist(*draw(train, 1), *draw(test, 2))


def like_python2(content: bytes) -> bytes:
    """Turn the byte strings of a pickle into Python 2 strings."""
    changed = bytearray(content)
    for opcode, _, position in pickletools.genops(content):
        if opcode.name in ("BINBYTES", "SHORT_BINBYTES"):
            changed[position or 0] = ord("T" if opcode.name == "BINBYTES" else "U")
    assert changed != content
    return bytes(changed)
