"""Model files, inputs and expected outputs, made before anything is timed."""
