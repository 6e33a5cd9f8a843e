"""Decoders of image files beside Pillow, which decode a batch at once."""
