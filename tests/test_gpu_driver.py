"""A machine's driver and cards, as files and programs of NVIDIA's write them, and what they can compile."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segtrain import gpu_driver
from segtrain.gpu_driver import (
    BUILT_FOR,
    Card,
    cards_line,
    cards_listed,
    driver_version,
    driver_warning,
    is_compiled_for,
    machine_lines,
    machines_cards,
    machines_driver,
)
from tests.support.places import REPOSITORY

A10G, H100 = Card("NVIDIA A10G", (8, 6)), Card("NVIDIA H100 80GB HBM3", (9, 0))
GCC = "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023", "535.129.03"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  384.81  Wed Aug 17 22:24:07 PDT 2016", "384.81"),
        ("NVRM version: NVIDIA UNIX x86 Kernel Module  169.12  Thu Feb 14 17:53:07 PST 2008", "169.12"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  555.42.06  Release Build  (abuild@host)  "
            "Thu Jul 11 12:00:00 UTC 2024",
            "555.42.06",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  "
            "(buildbrain@mobile-u64-6336-d8000)  Tue Jan  7 17:35:12 PST 2025",
            "540.4.0",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.173.02  Release Build", "580.173.02"),
        ("NVRM version: something else", None),
        ("", None),
    ],
)
def test_the_drivers_version_is_found_in_what_the_kernel_says(line: str, version: str | None) -> None:
    assert driver_version(f"{line}\n{GCC}") == version


def test_the_machines_driver_is_read_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_driver, "VERSION_FILE", tmp_path / "version")
    assert machines_driver() is None
    (tmp_path / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n{GCC}")
    assert machines_driver() == "550.54.15"


def test_cards_are_read_from_nvidia_smis_list() -> None:
    listed = "NVIDIA H100 80GB HBM3, 9.0\nNVIDIA H100 80GB HBM3, 9.0\nNVIDIA RTX, of a kind, 12.0\n"
    assert cards_listed(listed) == [H100, H100, Card("NVIDIA RTX, of a kind", (12, 0))]
    assert cards_listed("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == []


def nvidia_smi(folder: Path, does: str) -> None:
    """A program of this name that does something when it is asked for the cards."""
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$*" = "--query-gpu=name,compute_cap --format=csv,noheader" ] && {does}\n')
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("does", "cards"),
    [("echo 'NVIDIA A10G, 8.6'", [A10G]), ("echo 'No devices were found'", []), ("exec sleep 60", [])],
    ids=["a card", "none", "no answer"],
)
def test_the_machines_cards_are_asked_for(
    does: str, cards: list[Card], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path, does)
    monkeypatch.setattr(gpu_driver, "ANSWERS_WITHIN_S", 1.0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machines_cards() == cards
    monkeypatch.setenv("PATH", "/nonexistent")
    assert machines_cards() == []


@pytest.mark.parametrize(
    ("capability", "compiled"),
    [
        ((6, 0), False),
        ((6, 1), False),  # machine code runs on later minor versions
        ((7, 5), False),
        ((8, 6), False),
        ((8, 9), False),
        ((9, 0), True),
        ((10, 0), True),
        ((12, 1), True),
        ((5, 2), False),  # neither runs there, and TensorFlow leaves such a card out
    ],
)
def test_kernels_are_compiled_for_cards_newer_than_the_machine_code(
    capability: tuple[int, int], compiled: bool
) -> None:
    assert is_compiled_for(capability) is compiled


def test_a_build_with_machine_code_for_a_card_compiles_nothing() -> None:
    assert not is_compiled_for((9, 0), ["sm_80", "sm_90", "compute_90"])
    assert is_compiled_for((10, 0), ["sm_80", "sm_90a", "compute_90"])


def test_cards_of_one_kind_are_counted_and_a_long_first_step_is_told_of() -> None:
    assert cards_line([A10G, A10G], "550.54.15") == (
        "2 x NVIDIA A10G (compute capability 8.6), NVIDIA driver 550.54.15"
    )
    said = cards_line([H100, A10G], None)
    assert said.startswith("1 x NVIDIA H100 80GB HBM3 (compute capability 9.0), 1 x NVIDIA A10G (compute ")
    assert "driver unknown; TensorFlow has no machine code for 9.0, so a first step" in said
    assert said.endswith("(cluster.first_step_s)")


@pytest.mark.parametrize(
    ("cards", "driver", "warned"),
    [
        ([H100], "550.54.15", True),
        ([A10G, H100], "525.60.13", True),
        ([H100], "555.42.06", False),
        ([H100], "1000.1", False),
        ([A10G], "525.60.13", False),
        ([H100], None, False),
        ([], "525.60.13", False),
    ],
)
def test_a_driver_that_cannot_compile_what_a_card_needs_is_warned_of(
    cards: list[Card], driver: str | None, warned: bool
) -> None:
    warning = driver_warning(cards, driver)
    assert (warning is not None) is warned
    if warning is not None:
        assert warning.startswith(f"NVIDIA driver {driver} is older than 555, which is needed to compile ")
        assert "NVIDIA H100 80GB HBM3 (compute capability 9.0); update it" in warning


def test_a_dry_run_names_this_machines_cards_and_warns_of_its_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path, "echo 'NVIDIA H100 80GB HBM3, 9.0'")
    monkeypatch.setattr(gpu_driver, "VERSION_FILE", tmp_path / "version")
    (tmp_path / "version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n{GCC}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    named, warned = machine_lines()
    assert named.startswith(
        "this machine has 1 x NVIDIA H100 80GB HBM3 (compute capability 9.0), NVIDIA driver 550.54.15"
    )
    assert warned.startswith("NVIDIA driver 550.54.15 is older than 555")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert machine_lines() == []


def test_what_tensorflow_is_built_for_is_what_its_build_says() -> None:
    program = (
        "import tensorflow as tf\n"
        "facts = tf.sysconfig.get_build_info()\n"
        "print(*facts['cuda_compute_capabilities'], facts['cuda_version'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=REPOSITORY, check=True
    )
    *built_for, cuda = done.stdout.split()
    assert tuple(built_for) == BUILT_FOR, importlib.metadata.version("tensorflow")
    assert cuda.startswith("12.5."), "another CUDA needs another driver: COMPILING_DRIVER"
