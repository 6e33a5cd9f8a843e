"""``run`` on a cluster: a job's shards are spread over actors of Ray."""
