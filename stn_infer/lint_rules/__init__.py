"""What lint looks for, a rule a function."""
