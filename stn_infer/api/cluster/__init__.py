"""The public side of Ray clusters: what `run` sends to workers, and a model in your own Ray Data pipelines."""
