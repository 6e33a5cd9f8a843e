"""Runtimes behind one small protocol; a runtime is imported when a model is opened in it."""
