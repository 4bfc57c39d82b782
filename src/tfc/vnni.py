"""Whether this CPU has VNNI: instructions that multiply uint8 by int8 and add in 32 bits.

x86 without it adds neighbouring products in 16 bits, where 2·255·127 does not fit: they saturate,
and an int8 engine gives other numbers than where it was built, wrong ones. ONNX Runtime can
multiply uint8 by uint8 there (`session.x64quantprecision`), which is exact. The option halves the
speed of integer products with VNNI, and ONNX Runtime does not look for VNNI before it obeys.
"""

from __future__ import annotations

import platform
from pathlib import Path

# Linux's names for VNNI in registers of 512 bits, and of 256 or 128.
_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})
_X86 = frozenset({"x86_64", "amd64", "i386", "i686", "x86"})
_CPUINFO = Path("/proc/cpuinfo")


def integer_products_saturate(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether products of uint8 and int8 may saturate here: on x86 without VNNI.

    Where the system does not tell its CPU's flags (it is read from Linux's /proc/cpuinfo), an x86
    CPU is taken to lack it: slower, and never wrong.
    """
    return platform.machine().lower() in _X86 and not _has_vnni(cpuinfo)


def _has_vnni(cpuinfo: Path) -> bool:
    if not cpuinfo.is_file():
        return False
    with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        flags = next((line for line in lines if line.startswith("flags")), "")
    return not _FLAGS.isdisjoint(flags.split())
