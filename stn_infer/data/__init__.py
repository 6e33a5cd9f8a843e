"""Loading images and arrays from files into batches of model inputs."""
