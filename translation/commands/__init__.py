"""The coe-translation command: one file per group of commands."""
