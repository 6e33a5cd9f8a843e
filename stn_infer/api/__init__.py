"""The public functions, one file each; the only place that sees a SOURCE as a user gives it."""
