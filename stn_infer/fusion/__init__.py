"""The fusion pass: replaces provably linear sampling grids and their samplers by one op. Entry point: fuse.py."""
