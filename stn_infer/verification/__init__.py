"""Every runtime against a float64 reference: grids in pixels, each sampler on its own, outputs."""
