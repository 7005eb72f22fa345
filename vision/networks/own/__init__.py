"""Architectures that neither timm nor torchvision has."""
