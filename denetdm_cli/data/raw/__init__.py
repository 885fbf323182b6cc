"""Originals, found locally or in the package index and verified: MNIST, CIFAR-10, frost textures."""
