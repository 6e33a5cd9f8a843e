"""Benchmarks of this repository: suites for `stn-infer bench`, other libraries as its variants, and scripts.

Each script runs from the repository's root as a file (``python benchmarks/quick.py``) and as a module
(``python -m benchmarks.quick``).
"""
