"""The public side of Ray clusters: ``run`` on one, and models in pipelines of one's own."""
