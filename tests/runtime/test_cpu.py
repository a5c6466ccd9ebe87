"""CPUs with and without bf16 instructions."""

from pathlib import Path

import pytest

from cherry_vllm.runtime import cpu


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 fma\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", False),
        ("processor\t: 0\n", False),
    ],
)
def test_bf16_is_read_from_the_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, *, lacks: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    assert cpu.lacks_bf16() is lacks
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "none")
    assert cpu.lacks_bf16() is False


@pytest.mark.parametrize(
    ("flags", "lacks"),
    [("fpu avx2 avx512f", True), ("fpu avx2 avx_vnni", False), ("fp asimd", False)],
)
def test_int8_is_read_from_the_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, *, lacks: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    assert cpu.lacks_int8() is lacks
