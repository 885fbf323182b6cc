"""The one training loop and what surrounds it: stages, run folders, checkpoints, processes, trackers."""
