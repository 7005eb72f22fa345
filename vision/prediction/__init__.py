"""A run as a function of images."""
