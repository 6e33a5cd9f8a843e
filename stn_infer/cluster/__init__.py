"""``run`` on a cluster: a job's shards are spread over workers by Ray Data."""
