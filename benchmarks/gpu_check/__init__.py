"""All checks and measurements on a GPU in one run of limited time, which keeps what it has whenever it ends."""
