"""Model repositories for Triton Inference Server: their files, and a trial in a real server."""
