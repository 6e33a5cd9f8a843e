"""Simulate the CUDA kernels' machine code instruction by instruction, without a GPU, and count it; see NOTES.md."""
