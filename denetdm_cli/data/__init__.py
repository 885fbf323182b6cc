"""From originals to a data set on disk, and from there to batches on a device."""
