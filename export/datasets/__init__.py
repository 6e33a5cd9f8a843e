"""Data of the paper's experiments: readers of SVHN and CUB-200-2011, and sets that are composed from MNIST digits."""
