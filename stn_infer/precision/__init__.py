"""Converts a verified float32 file to fp16, bf16 or int8, and measures the error of outputs and grids."""
