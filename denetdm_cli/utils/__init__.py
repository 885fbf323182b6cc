"""What knows neither images nor training: errors, text, logs, files, signals, devices, seeds and processes."""
