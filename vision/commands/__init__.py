"""The coe-vision command: one file per command."""
