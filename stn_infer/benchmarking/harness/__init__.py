"""Rounds, worker processes, and the protocol that variants fill in."""
