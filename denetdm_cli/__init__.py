"""Train image classifiers that do not lean on shortcuts (DeNetDM, NeurIPS 2024)."""

__version__ = "0.1.0"
