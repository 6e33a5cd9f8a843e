"""Comparison with other libraries, in the same run; see README.md in this folder."""
