"""What samples mean, and how they are shown and kept."""
