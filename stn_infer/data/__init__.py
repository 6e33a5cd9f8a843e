"""Inputs from files, arrays and images to batches."""
