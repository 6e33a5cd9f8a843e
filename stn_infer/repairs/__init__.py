"""Repairs of ONNX files before and after the fusion, and the comparison of a rewritten file with the original."""
