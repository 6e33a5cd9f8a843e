"""The pass that makes provably linear sampling grids one op; start at fuse.py."""
