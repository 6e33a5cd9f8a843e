"""The public functions, one file each; only this folder resolves a SOURCE as given by a user."""
