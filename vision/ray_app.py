"""Where the Ray Serve application was before it moved: ``serve run vision.ray_app:build`` goes on working."""

from vision.serve.ray_app import build

__all__ = ["build"]
