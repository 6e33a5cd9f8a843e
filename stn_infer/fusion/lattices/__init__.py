"""The form in which a grid is written: a basis, one matrix per axis, or a few points per pixel."""
