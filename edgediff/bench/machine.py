"""Describe the machine of a benchmark and its load during the run.

Everything is read from interfaces of the system, without further packages; a value that a system
does not report is None. If `psutil` is installed, it reports memory on Windows and macOS.
"""

import contextlib
import ctypes
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgediff.cores import usable_cores

_RAPL = Path("/sys/class/powercap")
_SECONDS = 0.05
"""Interval between two samples of a process."""

# The processor flags that decide which kernels run.
_KERNEL_FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512_bf16", "avx512_fp16"),
    *("avx512_vnni", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware and the system.

    cores: logical cores that this process may use. cpu_flags: flags that decide which kernels run.
    power: "mains" or "battery"."""

    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int
    memory_bytes: int | None
    system: str
    python: str
    power: str | None
    gpus: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The state of the machine while a benchmark ran.

    frequency_mhz: lowest, mean and highest observed clock, over all cores. throttled: thermal
    throttling events. others: share of the cores' time used by other processes and other virtual
    machines. Each is None if the system does not report it."""

    frequency_mhz: tuple[float, ...] | None
    throttled: int | None
    others: float | None


def describe() -> Machine:
    """This machine."""
    return Machine(
        cpu=_cpu_name(),
        cpu_flags=_cpu_flags(),
        cores=usable_cores(),
        memory_bytes=_memory(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        power=_power(),
        gpus=_gpus(),
    )


def process_memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes by the names of /proc/PID/status (VmRSS, VmHWM, RssAnon, RssFile, …), or from psutil
    elsewhere (VmRSS, and VmHWM on Windows); empty if neither is available."""
    text = _read(Path(f"/proc/{pid}/status"))
    if text:
        found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
        return {name: int(kib) * 1024 for name, kib in found}
    psutil = _psutil()
    if psutil is None:
        return {}
    try:
        found = psutil.Process(None if pid == "self" else int(pid)).memory_info()
        peak = {"VmHWM": int(found.peak_wset)} if hasattr(found, "peak_wset") else {}  # Windows
        return {"VmRSS": int(found.rss), **peak}
    except psutil.Error:
        return {}


def peak_memory() -> int | None:
    """Peak resident bytes of this process."""
    # ru_maxrss includes the memory of the process before fork and exec: it is the second choice.
    peak = process_memory().get("VmHWM")
    if peak is not None or sys.platform == "win32":
        return peak
    import resource

    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss if sys.platform == "darwin" else rss * 1024


def available_memory() -> int | None:
    """Bytes available without swapping, on Linux; None elsewhere."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def gpu_memory() -> int | None:
    """Bytes in use on the first NVIDIA GPU; None without one."""
    text = _run("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    first = text.splitlines()[0].strip() if text else ""
    return int(first) * 1024 * 1024 if first.isdigit() else None


class Energy:
    """Energy used by all processor packages, from Linux's RAPL counters."""

    def __init__(self) -> None:
        packages = sorted(_RAPL.glob("intel-rapl:[0-9]*")) if _RAPL.is_dir() else []
        # "intel-rapl:0:1" is part of "intel-rapl:0".
        self._packages = [p for p in packages if p.name.count(":") == 1]

    def read(self) -> tuple[int, ...] | None:
        """Counters in microjoules, by package; None if they cannot be read."""
        texts = [_read(p / "energy_uj").strip() for p in self._packages]
        return tuple(map(int, texts)) if texts and all(texts) else None

    def joules(self, before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> float | None:
        """Joules between two readings; the counters wrap around."""
        if before is None or after is None:
            return None
        total = 0
        for package, a, b in zip(self._packages, before, after, strict=True):
            end = _read(package / "max_energy_range_uj").strip()
            total += b - a if b >= a else b - a + int(end or 0)
        return total / 1e6


class Watch:
    """Samples a process and the machine, in a thread; a context manager.

    timeline: (seconds since the start, resident bytes) of the followed process. gpu_peak: most
    memory in use on the first GPU while a process was followed; None without a GPU."""

    def __init__(self) -> None:
        self.timeline: list[tuple[float, int]] = []
        self.gpu_peak: int | None = None
        self._pid: int | None = None
        self._started = time.monotonic()
        self._frequencies: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def follow(self, pid: int | None) -> None:
        """Sample this process from now on; None = no process."""
        self._pid = pid
        if pid is not None:
            self.gpu_peak = None

    def __enter__(self) -> Self:
        self._throttled, self._times = _throttle_count(), _cpu_times()
        self._own = os.times()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def conditions(self) -> Conditions:
        """The conditions since the start."""
        mhz = self._frequencies
        throttled = _throttle_count()
        events = (
            None
            if throttled is None or self._throttled is None
            else max(0, throttled - self._throttled)
        )
        return Conditions(
            frequency_mhz=(min(mhz), sum(mhz) / len(mhz), max(mhz)) if mhz else None,
            throttled=events,
            others=self._others(),
        )

    def _others(self) -> float | None:
        """Share of the cores' time that neither this process nor its finished children used."""
        now = _cpu_times()
        if now is None or self._times is None:
            return None
        busy, total = now[0] - self._times[0], now[1] - self._times[1]
        own = os.times()
        ours = sum(own[:4]) - sum(self._own[:4])
        return min(1.0, max(0.0, (busy - ours) / total)) if total > 0 else None

    def _sample(self) -> None:
        n = 0
        while not self._ended.wait(_SECONDS):
            pid = self._pid
            resident = process_memory(pid).get("VmRSS") if pid is not None else None
            if resident is not None:
                self.timeline.append((time.monotonic() - self._started, resident))
            if n % 10 == 0:
                self._frequencies += _frequencies()
                # Not while images are timed: the query uses CPU time.
                used = gpu_memory() if pid is not None else None
                if used is not None:
                    self.gpu_peak = max(used, self.gpu_peak or 0)
            n += 1


def _cpu_name() -> str:
    text = _read(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    if model:
        return model[1].strip()
    if sys.platform == "darwin":
        name = _run("sysctl", "-n", "machdep.cpu.brand_string").strip()
        if name:
            return name
    return platform.processor() or platform.machine()


def _cpu_flags() -> tuple[str, ...]:
    text = _read(Path("/proc/cpuinfo"))
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    there = set(flags[1].split()) if flags else set()
    return tuple(flag for flag in _KERNEL_FLAGS if flag in there)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        psutil = _psutil()
        return None if psutil is None else int(psutil.virtual_memory().total)


def _power() -> str | None:
    root = Path("/sys/class/power_supply")
    supplies = sorted(root.iterdir()) if root.is_dir() else []
    kinds = {_read(s / "type").strip(): _read(s / "online").strip() for s in supplies}
    if kinds.get("Mains") == "1":
        return "mains"
    if "Battery" in kinds:
        return "battery"
    if sys.platform == "darwin":
        text = _run("pmset", "-g", "batt")
        return "battery" if "Battery Power" in text else ("mains" if text else None)
    if sys.platform == "win32":
        status = (ctypes.c_ubyte * 12)()
        if ctypes.windll.kernel32.GetSystemPowerStatus(ctypes.byref(status)):
            return {0: "battery", 1: "mains"}.get(status[0])
    return None


def _gpus() -> tuple[str, ...]:
    text = _run("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _frequencies() -> list[float]:
    """Current MHz of every core."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    found = [int(text) / 1000 for f in files if (text := _read(f).strip()).isdigit()]
    if found:
        return found
    text = _read(Path("/proc/cpuinfo"))
    return [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", text, re.MULTILINE)]


def _throttle_count() -> int | None:
    """Thermal throttling events since the system started, over all cores."""
    root = Path("/sys/devices/system/cpu")
    files = sorted(root.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    counts = [int(text) for f in files if (text := _read(f).strip()).isdigit()]
    return sum(counts) if counts else None


def _cpu_times() -> tuple[float, float] | None:
    """(busy or stolen, all) seconds of all cores since the system started."""
    first = _read(Path("/proc/stat")).split("\n", 1)[0].split()
    if len(first) < 9 or first[0] != "cpu":
        return None
    ticks = [int(t) for t in first[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / hertz, sum(ticks) / hertz


def _psutil() -> Any:
    """psutil if it is installed, else None."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("psutil")
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(command: str, *arguments: str) -> str:
    """The output of a system tool; "" if it is missing or fails."""
    found = shutil.which(command)
    if found is None:
        return ""
    try:
        done = subprocess.run(
            [found, *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
