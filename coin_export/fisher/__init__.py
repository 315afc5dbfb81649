"""Statistics of a model on calibration inputs."""
