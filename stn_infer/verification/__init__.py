"""Compare every runtime with a float64 reference: grids in pixels, each sampler in isolation, outputs."""
