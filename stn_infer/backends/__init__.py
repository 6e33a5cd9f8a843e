"""Runtimes that run a model, behind one small protocol; a runtime is imported when it is opened."""
