"""Training of the shipped models and of the paper's experiments."""
