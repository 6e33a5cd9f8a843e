"""What every command has in common with the terminal: how much is said, the status line, completion."""
