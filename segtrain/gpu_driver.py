"""A machine's NVIDIA driver: its version, and whether it has to compile TensorFlow's kernels for a card, and can."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VERSION_FILE = Path("/proc/driver/nvidia/version")
BUILT_FOR = ("sm_60", "sm_70", "sm_80", "sm_89", "compute_90")
"""What TensorFlow 2.21 of PyPI has kernels for: `sm_` as machine code, `compute_` as PTX, which a driver compiles."""
COMPILING_DRIVER = 555
"""The first driver that compiles PTX of CUDA 12.5. Older ones, from 525 on, run CUDA 12.5's machine code alone."""
ANSWERS_WITHIN_S = 30.0


@dataclass(frozen=True)
class Card:
    """A GPU by its name and compute capability, such as (8, 0)."""

    name: str
    capability: tuple[int, int]


def driver_version(text: str) -> str | None:
    """The version, such as 535.129.03, in what `/proc/driver/nvidia/version` says; None where it says none."""
    found = re.search(r"^NVRM version:.*?(?<![\w.])(\d{3}\.\d+(?:\.\d+)?)(?![\w.])", text, re.MULTILINE)
    return found[1] if found else None


def machines_driver() -> str | None:
    """The version of this machine's driver; None where there is none."""
    return driver_version(VERSION_FILE.read_text()) if VERSION_FILE.exists() else None


def cards_listed(text: str) -> list[Card]:
    """The cards in lines `NAME, MAJOR.MINOR`, as nvidia-smi writes them; other lines are left out."""
    lines = re.findall(r"^(.+), (\d+)\.(\d+)$", text, re.MULTILINE)
    return [Card(name, (int(major), int(minor))) for name, major, minor in lines]


def machines_cards() -> list[Card]:
    """This machine's cards as nvidia-smi lists them; none where it is not installed, fails or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=ANSWERS_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        return []
    return cards_listed(done.stdout)


def machine_lines() -> list[str]:
    """What a dry run says of this machine's cards and driver; nothing where it has no cards."""
    cards, driver = machines_cards(), machines_driver()
    if not cards:
        return []
    warning = driver_warning(cards, driver)
    return [f"this machine has {cards_line(cards, driver)}", *([warning] if warning is not None else [])]


def is_compiled_for(capability: tuple[int, int], built_for: Sequence[str] = BUILT_FOR) -> bool:
    """Whether the driver compiles every kernel for a card of this compute capability before its first use.

    Machine code runs on cards of its own major version, from its minor version on; PTX on its own and newer cards.
    """
    machine_code, ptx = _numbers("sm", built_for), _numbers("compute", built_for)
    runs = any(major == capability[0] and minor <= capability[1] for major, minor in machine_code)
    return not runs and any(each <= capability for each in ptx)


def _numbers(kind: str, built_for: Sequence[str]) -> list[tuple[int, int]]:
    """Compute capabilities of a kind, such as (8, 9) of `sm_89`."""
    found = re.findall(rf"\b{kind}_(\d+)(\d)", " ".join(built_for))
    return [(int(major), int(minor)) for major, minor in found]


def cards_line(cards: Sequence[Card], driver: str | None, built_for: Sequence[str] = BUILT_FOR) -> str:
    """The cards, the driver, and whether the first step takes long, for the log and a dry run."""
    counts = Counter(cards)
    parts = [f"{count} x {card.name} (compute capability {_dotted(card)})" for card, count in counts.items()]
    said = f"{', '.join(parts)}, NVIDIA driver {driver or 'unknown'}"
    new = [card for card in counts if is_compiled_for(card.capability, built_for)]
    if new:
        said += (
            f"; TensorFlow has no machine code for {' and '.join(sorted({_dotted(card) for card in new}))}, so a first "
            f"step without CUDA's cache compiles its kernels, which may take half an hour (cluster.first_step_s)"
        )
    return said


def driver_warning(cards: Sequence[Card], driver: str | None, built_for: Sequence[str] = BUILT_FOR) -> str | None:
    """A sentence where the driver is too old to compile the kernels that one of the cards needs."""
    new = [card for card in cards if is_compiled_for(card.capability, built_for)]
    if driver is None or not new or int(driver.partition(".")[0]) >= COMPILING_DRIVER:
        return None
    return (
        f"NVIDIA driver {driver} is older than {COMPILING_DRIVER}, which is needed to compile TensorFlow's kernels for "
        f"{new[0].name} (compute capability {_dotted(new[0])}); update it, or install NVIDIA's package cuda-compat-12-5"
    )


def _dotted(card: Card) -> str:
    return ".".join(map(str, card.capability))
