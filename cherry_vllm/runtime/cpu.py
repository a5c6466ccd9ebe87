"""What this machine's CPUs can do."""

import re
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and of Arm
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimd"}


def lacks_bf16() -> bool:
    """Whether the CPUs have no bf16 instructions, so that bf16 is several times slower than fp32.

    False where nobody can tell.
    """
    return _lacks(BF16_FLAGS)


def lacks_int8() -> bool:
    """Whether the CPUs add products of int8 in 16 bits, which large weights overflow.

    False where nobody can tell.
    """
    return _lacks(INT8_FLAGS)


def _lacks(flags: set[str]) -> bool:
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and flags.isdisjoint(found[1].split())
