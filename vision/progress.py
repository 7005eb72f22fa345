"""Progress of long loops over images; see `coe_core.support.progress`."""

from coe_core.support.progress import ProgressLine, progress

__all__ = ["ProgressLine", "progress"]
