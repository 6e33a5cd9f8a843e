"""Building a release: the wheel, and the container images."""
