"""Pictures of inputs, sampling grids and warped outputs."""
