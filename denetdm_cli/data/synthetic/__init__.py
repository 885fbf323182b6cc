"""Data sets that are made: Colored MNIST and Corrupted CIFAR-10."""
