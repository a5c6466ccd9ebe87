"""What this machine's CPUs can do."""

import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and of Arm


def lacks_bf16() -> bool:
    """Whether the CPUs have no bf16 instructions, so that bf16 is several times slower than fp32.

    False where nobody can tell.
    """
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and BF16_FLAGS.isdisjoint(found[1].split())
