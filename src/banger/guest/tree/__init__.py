"""Trees of files as tar streams: packed and unpacked alike on the host and in the guest.

Standard library only, Python 3.9 or newer. Names are bytes throughout, whatever the locale.
"""

from banger.guest.tree.packing import pack
from banger.guest.tree.report import SKIPPED_MAX, Progress, Report, TreeError
from banger.guest.tree.unpacking import KEEP, UNPACKER, Owner, unpack

__all__ = ["KEEP", "SKIPPED_MAX", "UNPACKER", "Owner", "Progress", "Report", "TreeError", "pack", "unpack"]
