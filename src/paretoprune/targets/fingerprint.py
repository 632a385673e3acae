"""What a figure was taken on: processor, instruction sets, runtime and versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
"""Those that change which kernels a runtime picks. Spelt as in /proc/cpuinfo."""


@cache
def cpu_facts() -> tuple[str, tuple[str, ...]]:
    """(processor name, instruction sets that matter); the second is empty where it cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown processor"
    return name, tuple(sorted(flags & set(INSTRUCTION_SETS)))


def has_int8_dot() -> bool:
    """Whether 8-bit products are summed in 32 bits by one instruction (VNNI, or any ARM).

    Without it x86 sums u8 x s8 pairs in 16 bits, which saturates unless weights keep to 7 bits.
    """
    if platform.machine().lower() not in {"x86_64", "amd64", "i386", "i686"}:
        return True
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(cpu_facts()[1]))


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine_facts() -> dict[str, str]:
    name, sets = cpu_facts()
    return {
        "cpu": name,
        "instruction_sets": " ".join(sets) or "unknown",
        "machine": platform.machine(),
        "system": platform.system(),
    }


def fingerprint_id(fingerprint: Mapping[str, str]) -> str:
    """A short hash (12 hex digits) that does not depend on the order of the entries."""
    text = json.dumps(dict(fingerprint), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
