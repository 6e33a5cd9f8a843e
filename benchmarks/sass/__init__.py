"""The CUDA kernels' machine code, run instruction by instruction without a GPU and counted; see NOTES.md."""
