"""How much memory this process has held at most."""

import re
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The most main memory so far; 0 where nobody can tell.

    Not getrusage's: a child's ``ru_maxrss`` begins with the peak of the process that started it.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def peak_gpu_bytes() -> int:
    """The most memory of its GPU that torch has held in this process; 0 without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())
