"""Measures a job on the machine where it runs: `python agent.py FOLDER`. Needs Python 3.9, numpy and onnxruntime.

It is one file because it is copied to devices. It compares answers and decisions with what is expected, times the arms
in random order, and writes `result.json` and, as the proof that it came to its end, `result.sha256`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import platform
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Optional, Tuple

VERSION = "1"
SCHEMA_VERSION = 1
MOST_DIFFERENT = 0.01  # share of the decisions: two scores can be equal up to rounding
MOST_SAMPLES = 400_000  # of a job: its result is sent through a shell
FIRST_LOOK = 10  # rounds; each further look comes at twice as many, or it would stop on the luckiest round
CLOCK_JUMP_S = 1.0  # of the wall clock against the one that only goes forward
SPARE_S = 5.0  # after the deadline, to write the result; then the kernel ends this process
READ_EVERY_S = 1.0
Watts = Optional[Tuple[float, str, bool]]  # (watts, scope, whether it is a model); None: it cannot be read
TOTAL_RAIL = "VDD_IN"  # of a Jetson: the whole module


class Stop(Exception):
    """It cannot be measured; the message says why."""


class Deadline(Exception):
    """The time of the job is over."""


# --- Text of sensors, as numbers. Each takes what a file or a command gives; None: it does not hold the value. ---


def parse_pmic(text: str) -> dict[str, float]:
    """Watts by rail from `vcgencmd pmic_read_adc` of a Raspberry Pi 5, with or without channel numbers."""
    found: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for rail, kind, value in re.findall(r"(\w+)_([AV])\s*(?:(?:current|volt)\(\d+\))?\s*=\s*(-?[\d.]+)", text):
        found[kind][rail] = float(value)
    return {rail: amperes * found["V"][rail] for rail, amperes in found["A"].items() if rail in found["V"]}


def parse_ina3221(files: dict[str, str]) -> dict[str, float]:
    """Watts by rail from the files of a Jetson's INA3221: names such as `in1_label`, `in1_input`, `curr1_input`."""
    rails = {}
    for name, label in files.items():
        channel = re.fullmatch(r"in(\d)_label", name)
        if channel:
            try:
                millivolts, milliamperes = (float(files[f"{kind}{channel[1]}_input"]) for kind in ("in", "curr"))
            except (KeyError, ValueError):
                continue
            rails[label.strip()] = millivolts * milliamperes / 1e6
    return rails


def parse_battery(text: str) -> dict[str, Any] | None:
    """`dumpsys battery` of Android: share in percent, volts, degrees, and whether it is being charged."""
    values = dict(re.findall(r"^\s*([\w ]+?):\s*(\S+)\s*$", text, re.MULTILINE))
    try:
        return {
            "percent": 100.0 * float(values["level"]) / float(values.get("scale", "100")),
            "volts": float(values["voltage"]) / 1000,
            "temperature_c": float(values["temperature"]) / 10,
            "powered": any(values.get(f"{kind} powered") == "true" for kind in ("AC", "USB", "Wireless", "Dock")),
        }
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def parse_temperature(text: str) -> float | None:
    """Degrees from a thermal zone, which gives thousandths; None: no plausible temperature."""
    try:
        celsius = float(text) / 1000
    except ValueError:
        return None
    return celsius if 0 < celsius < 150 else None


def parse_mhz(text: str) -> float | None:
    """MHz from cpufreq, which gives kHz."""
    try:
        return float(text) / 1000
    except ValueError:
        return None


def is_emulated(uname: str, command: str, cpuinfo: str, modalias: str = "", emulator: str = "") -> bool:
    """Whether this is an emulator of another machine, whose times mean nothing.

    uname: architecture; command: how this process was started according to the kernel, and its name; cpuinfo: of the
    kernel; modalias: of its processor, which tells the host's kind; emulator: what Android says of being one.
    """
    if "qemu-" in command or "1" in emulator:
        return True
    if uname in ("x86_64", "i386", "i686", "AMD64"):
        return "type:aarch64" in modalias
    return any(sign in cpuinfo for sign in ("GenuineIntel", "AuthenticAMD")) or "type:x86" in modalias


# --- The machine ---


def text_of(path: str | Path) -> str:
    """Content of a small file; empty: it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def output_of(*command: str) -> str:
    """What a command prints; empty: it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def emulated_here() -> bool:
    """Whether this process runs in an emulator."""
    # Of a process, qemu answers for /proc/self in its guest's name; for the thread the kernel does.
    started = f"{text_of('/proc/thread-self/cmdline')} {text_of('/proc/thread-self/comm')}"
    return is_emulated(
        platform.machine(),
        started,
        text_of("/proc/cpuinfo"),
        text_of("/sys/devices/system/cpu/modalias"),
        output_of("/system/bin/getprop", "ro.boot.qemu") + output_of("/system/bin/getprop", "ro.kernel.qemu"),
    )


def temperature_c() -> float | None:
    """Of the hottest thermal zone; None: there is none."""
    zones = (parse_temperature(text_of(zone)) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    return max((celsius for celsius in zones if celsius is not None), default=None)


def clock_mhz(cpus: list[int] | None) -> float | None:
    """Of the cores that are used; None: the kernel does not say."""
    cores = cpus or range(os.cpu_count() or 1)
    found = (parse_mhz(text_of(f"/sys/devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq")) for n in cores)
    return max((mhz for mhz in found if mhz is not None), default=None)


def watts_rpi5_pmic() -> Watts:
    """By the power chip of a Raspberry Pi 5."""
    rails = parse_pmic(output_of("vcgencmd", "pmic_read_adc"))
    return (
        (sum(rails.values()), "sum of the rails of the power chip, without its losses and USB", True) if rails else None
    )


def watts_jetson_ina3221() -> Watts:
    """By the sensor of a Jetson."""
    rails = {}
    for folder in Path("/sys/class/hwmon").glob("hwmon*"):
        if text_of(folder / "name") == "ina3221":
            rails.update(parse_ina3221({f.name: text_of(f) for f in folder.iterdir() if f.is_file()}))
    if TOTAL_RAIL in rails:
        return rails[TOTAL_RAIL], "module (VDD_IN), without the carrier board", False
    return (sum(rails.values()), f"sum of the rails {', '.join(sorted(rails))}", False) if rails else None


def watts_android_battery() -> Watts:
    """By the gauge of a phone; None also while it is charged, as the current is then not that of the device."""
    state = parse_battery(output_of("dumpsys", "battery"))
    current = text_of("/sys/class/power_supply/battery/current_now")
    if state is None or state["powered"] or not re.fullmatch(r"-?\d+", current):
        return None
    return abs(int(current)) / 1e6 * state["volts"], "whole device, by its battery gauge", False


SENSORS = {
    "rpi5_pmic": (watts_rpi5_pmic, "vcgencmd gives no currents: it needs a Raspberry Pi 5"),
    "jetson_ina3221": (watts_jetson_ina3221, "there is no INA3221 that may be read"),
    "android_battery": (watts_android_battery, "the battery gauge cannot be read, or the device is being charged"),
}


def device_facts() -> dict[str, Any]:
    """Where this runs."""
    info = text_of("/proc/cpuinfo")
    cpu = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", info, re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "name": text_of("/proc/device-tree/model") or platform.node() or "unnamed",
        "architecture": platform.machine(),
        "cpu": cpu[1].strip() if cpu else None,
        "cores": os.cpu_count(),
        "memory_bytes": float(pages) if pages > 0 else None,
        "os": f"{platform.system()} {platform.release()}",
        "browser": None,
    }


def peak_memory_bytes() -> float | None:
    """Largest resident set of this process; None: the kernel does not say."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", text_of("/proc/self/status"), re.MULTILINE)
    return 1024.0 * int(found[1]) if found else None


# --- Statistics and comparison ---


def half_width(ratios: list[float]) -> float:
    """Half the 95 % interval of the median as a share of it: two order statistics (sign test)."""
    x, n = sorted(ratios), len(ratios)
    # The logarithm of a binomial probability: from 1075 rounds on 0.5**n itself is 0.
    rank, log_term = 0, n * math.log(0.5)
    below = math.exp(log_term)
    while below <= 0.025 and 2 * (rank + 1) <= n:
        rank += 1
        log_term += math.log((n - rank + 1) / rank)
        below += math.exp(log_term)
    if not rank:
        return math.inf
    middle = (x[(n - 1) // 2] + x[n // 2]) / 2
    return (x[n - rank] - x[rank - 1]) / 2 / middle


def answer_error(np: Any, found: Any, right: Any, same: Any) -> float:
    """Largest difference relative to the largest value; NaN where one of the two alone is NaN, inf for another shape.

    found, right: [n, ...]; same: [n] bool: which are compared.
    """
    if found.shape != right.shape or found.dtype != right.dtype:
        return math.inf
    found, right = found[same].astype(np.float64), right[same].astype(np.float64)
    if (np.isnan(found) != np.isnan(right)).any():
        return math.nan
    finite = np.isfinite(right)
    known = ~np.isnan(right)
    if not np.array_equal(found[known & ~finite], right[known & ~finite]) or not np.isfinite(found[finite]).all():
        return math.inf
    difference = np.abs(found[finite] - right[finite]).max(initial=0.0)
    return float(difference / max(np.abs(right[finite]).max(initial=0.0), 1e-30))


def wrong_decisions(
    np: Any, decided: dict[str, Any], size: int, runs: list[Any], expected: Any, reached: Any, tolerance: float
) -> Any:
    """Which decisions are others than expected, or missing, or too many: bool for each row of the stream."""
    per = math.prod(decided["sizes"])
    wrong = np.ones(len(runs) * size * per, dtype=bool)
    largest = max(np.abs(expected).max(initial=0.0), 1e-30) if expected.dtype.kind == "f" else None
    for b, run in enumerate(runs):
        base, rows = b * size * per, size * per
        items = decided["items"]
        ids = np.asarray(run[items] if isinstance(items, str) else items, dtype=np.int64).reshape(-1)
        value = run[decided["decision"]]
        within = not ((ids < 0) | (ids >= rows)).any() and len(np.unique(ids)) == len(ids)
        if not within or value.size != len(ids) * math.prod(expected.shape[1:]) or value.dtype != expected.dtype:
            continue
        asked = np.zeros(rows, dtype=bool)
        asked[ids] = True
        here = asked != reached[base : base + rows]
        value, right = value.reshape(len(ids), *expected.shape[1:]), expected[base + ids]
        same = value == right if largest is None else np.abs(value - right) <= tolerance * largest
        here[ids[~same.reshape(len(ids), -1).all(axis=1)]] = True
        wrong[base : base + rows] = here
    return wrong


def why_different(check: dict[str, Any], tolerance: float) -> str | None:
    """Why an arm is not timed; None: it is the same network."""
    if check["error"] == "nan":
        return "answers have another shape or type, or NaN or infinities in other places"
    if check["error"] > tolerance:
        return f"answers differ by {check['error']:.1e} of the largest value"
    if check["decisions_differ"] > MOST_DIFFERENT * check["decisions"]:
        return f"{check['decisions_differ']} of {check['decisions']} decisions differ"
    return None


class Readings:
    """Clock, temperature and battery while it measures. Taken between rounds, so that no sample is disturbed."""

    def __init__(self, cpus: list[int] | None) -> None:
        self.cpus, self.start = cpus, time.monotonic()
        self.rows: dict[str, list[list[float]]] = {"clock_mhz": [], "temperature_c": [], "battery": []}

    def take(self) -> None:
        """Notes what can be read now."""
        now = round(time.monotonic() - self.start, 3)
        capacity = text_of("/sys/class/power_supply/battery/capacity")
        battery = float(capacity) if capacity.isdigit() else None
        for name, value in (
            ("clock_mhz", clock_mhz(self.cpus)),
            ("temperature_c", temperature_c()),
            ("battery", battery),
        ):
            if value is not None:
                self.rows[name].append([now, value])

    def table(self) -> dict[str, Any]:
        """For the result."""
        why = {
            "clock_mhz": "the kernel gives no clock of the cores (cpufreq)",
            "temperature_c": "there is no thermal zone that may be read",
            "battery": "there is no battery that may be read",
        }
        return {name: rows or {"unavailable": why[name]} for name, rows in self.rows.items()}


class Power(threading.Thread):
    """Reads a sensor twice a second until it is stopped. `readings` are (s, watts)."""

    def __init__(self, read: Callable[[], Watts]) -> None:
        super().__init__(daemon=True)
        self.read, self.scope, self.model = read, "", False
        self.readings: list[tuple[float, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        """Reads until it is over."""
        while not self.over.is_set():
            found = self.read()
            if found:
                watts, self.scope, self.model = found
                self.readings.append((time.monotonic(), watts))
            self.over.wait(0.5)

    def mean_watts(self) -> float | None:
        """Ends it; None: nothing could be read."""
        self.over.set()
        self.join()
        return sum(w for _, w in self.readings) / len(self.readings) if self.readings else None


# --- Measuring ---


class Lane:
    """An arm at a batch size."""

    def __init__(self, arm: dict[str, Any], size: int) -> None:
        self.arm, self.size = arm, size
        self.reason: str | None = None
        graphs = arm["graphs"]
        self.file = (graphs.get("single") if size == 1 else None) or graphs["any"]
        self.session: Any = None
        self.load_ms: float | None = None
        self.first_ms: float | None = None
        self.feeds: list[dict[str, Any]] = []
        self.rounds: list[list[int]] = []
        self.positions: list[int] = []
        self.answers = [a["output"] for a in arm["answers"]]

    def outputs(self) -> list[str]:
        """All outputs that are compared; timed runs ask for the answers alone."""
        decided = [d["decision"] for d in self.arm["decisions"]]
        return list(
            dict.fromkeys(
                self.answers + decided + [d["items"] for d in self.arm["decisions"] if isinstance(d["items"], str)]
            )
        )

    def call(self) -> Any:
        """What is timed: the session below its checks of names, which cost 1 us a call, as `dynbench run` calls it."""
        return getattr(self.session, "_sess", self.session).run

    def sample(self) -> list[int]:
        """One pass over the stream: the ns of every batch."""
        run, names, clock, out = self.call(), self.answers, time.perf_counter_ns, []
        for feeds in self.feeds:
            start = clock()
            run(names, feeds, None)
            out.append(max(1, clock() - start))
        return out


class Measurement:
    """Of one job."""

    def __init__(self, folder: Path, np: Any, ort: Any) -> None:
        self.folder, self.np, self.ort = folder, np, ort
        self.job = read_job(folder)
        self.start, self.wall = time.monotonic(), time.time() - time.monotonic()
        self.clock_jumps = 0
        self.notes: list[str] = []
        self.emulated = self.job["emulated"] or emulated_here()
        self.cpus = self._pin()
        self.readings = Readings(self.cpus)
        self.energy: dict[str, Any] = {
            "unavailable": "energy needs sustained load of 10 s or more, after the rounds (--sustained 10)"
        }

    def run(self) -> dict[str, Any]:
        """The result."""
        started = time.time()
        lanes = [Lane(arm, size) for size in self.job["batch_sizes"] for arm in self.job["arms"]]
        sustained, split, checks, stopped_by = None, None, [], "rounds"
        try:
            inputs = self.np.load(self.folder / self.job["input"]["file"], allow_pickle=False)
            for lane in lanes:
                self.load(lane, inputs)
            for lane in lanes:
                if lane.reason is None and lane.arm.get("compared", True):
                    checks.append(self.check(lane))
            if not self.emulated:
                stopped_by = self.time(lanes)
                sustained = self.sustain(lanes) if self.job["sustained_s"] else None
                split = self.split(lanes) if self.job.get("split") else None
        except Deadline:
            stopped_by = "deadline"
        for lane in lanes:
            if not lane.rounds and lane.reason is None and not self.emulated:
                lane.reason = "its turn did not come before the deadline"
        return {
            "schema_version": SCHEMA_VERSION,
            "job_id": self.job["job_id"],
            "status": "ok",
            "reason": None,
            "agent": agent_facts(self.ort, self.notes),
            "device": device_facts(),
            "emulated": self.emulated,
            "threads": self.job["threads"],
            "cpus": self.cpus,
            "started_unix_s": started,
            "ended_unix_s": time.time(),
            "clock_jumps": self.clock_jumps,
            "stopped_by": stopped_by,
            "checks": checks,
            "arms": [
                {
                    "name": lane.arm["name"],
                    "batch_size": lane.size,
                    "reason": lane.reason,
                    "load_ms": lane.load_ms if not self.emulated else None,
                    "first_run_ms": lane.first_ms if not self.emulated else None,
                    "download_ms": None,
                    "rounds": lane.rounds,
                    "positions": lane.positions,
                }
                for lane in lanes
            ],
            "sustained": sustained,
            "split": split,
            "memory_bytes": None if self.emulated else peak_memory_bytes(),
            "readings": {} if self.emulated else dict(self.readings.table(), energy_j=self.energy),
        }

    def load(self, lane: Lane, inputs: Any) -> None:
        """Makes the session and the batches: full ones only."""
        number = len(inputs) // lane.size
        if not number:
            lane.reason = f"the job holds {len(inputs)} items only"
            return
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.job["threads"], 1
        options.log_severity_level = 4
        try:
            start = time.perf_counter_ns()
            lane.session = self.ort.InferenceSession(
                str(self.folder / lane.file), options, providers=["CPUExecutionProvider"]
            )
            lane.load_ms = (time.perf_counter_ns() - start) / 1e6
            takes = {value.name for value in lane.session.get_inputs()}
            arrays = {self.job["input"]["name"]: (inputs, 1)}
            for given in lane.arm.get("given", []):
                array = self.np.load(self.folder / given["file"], allow_pickle=False)
                arrays[given["input"]] = (array, given["rows"])
            lane.feeds = [
                {
                    name: self.np.ascontiguousarray(array[i * lane.size * rows : (i + 1) * lane.size * rows])
                    for name, (array, rows) in arrays.items()
                    if name in takes
                }
                for i in range(number)
            ]
            start = time.perf_counter_ns()
            lane.session.run(lane.answers, lane.feeds[0])
            lane.first_ms = (time.perf_counter_ns() - start) / 1e6
        except Exception as e:  # noqa: BLE001 - whatever the runtime raises
            lane.reason = fault(e)
        self.within()

    def check(self, lane: Lane) -> dict[str, Any]:
        """Compares the answers and decisions of the whole stream; an arm that differs is not timed."""
        np, names, runs = self.np, lane.outputs(), []
        check = {
            "arm": lane.arm["name"],
            "batch_size": lane.size,
            "error": "nan",
            "decisions": 0,
            "decisions_differ": 0,
        }
        try:
            for feeds in lane.feeds:
                runs.append(dict(zip(names, lane.session.run(names, feeds))))
                self.within()
        except Deadline:
            raise
        except Exception as e:  # noqa: BLE001 - whatever the runtime raises
            lane.reason = fault(e)
            return check
        items = len(runs) * lane.size
        same = np.ones(items, dtype=bool)
        for decided in lane.arm["decisions"]:
            expected, reached = (np.load(self.folder / decided[k], allow_pickle=False) for k in ("expected", "reached"))
            wrong = wrong_decisions(np, decided, lane.size, runs, expected, reached, self.job["tolerance"])
            check["decisions"] += int(reached[: len(wrong)].sum())
            check["decisions_differ"] += int(wrong.sum())
            same &= ~wrong.reshape(items, -1).any(axis=1)
        errors = []
        for answer in lane.arm["answers"]:
            right = np.load(self.folder / answer["file"], allow_pickle=False)[:items]
            errors.append(answer_error(np, np.concatenate([run[answer["output"]] for run in runs]), right, same))
        check["error"] = max(errors) if all(map(math.isfinite, errors)) else "nan"
        lane.reason = why_different(check, self.job["tolerance"])
        return check

    def time(self, lanes: list[Lane]) -> str:
        """Rounds of each batch size in turn. Returns why it stopped."""
        order, reasons = random.Random(self.job["seed"]), []
        sizes = list(dict.fromkeys(lane.size for lane in lanes))
        for size in sizes:
            group = [lane for lane in lanes if lane.size == size and lane.reason is None]
            if group:
                self.cool_down()
                for lane in group:
                    end = time.monotonic() + self.job["warm_up_s"]
                    lane.sample()
                    while time.monotonic() < end:
                        self.within()
                        lane.sample()
                reasons.append(self.rounds(group, order, MOST_SAMPLES // len(sizes)))
        known = ("time limit", "rounds", "precision")
        return next((reason for reason in known if reason in reasons), "rounds")

    def rounds(self, group: list[Lane], order: random.Random, most: int) -> str:
        """Each round is the whole stream by each arm, in random order."""
        start, look, read = time.monotonic(), FIRST_LOOK, 0.0
        while True:
            turn = order.sample(group, len(group))
            taken = []
            for lane in turn:
                taken.append(lane.sample())
                self.within()
            for position, (lane, ns) in enumerate(zip(turn, taken)):  # a round counts as a whole or not at all
                lane.rounds.append(ns)
                lane.positions.append(position)
            now = time.monotonic()
            self.watch_clock()
            if now - read >= READ_EVERY_S:  # between rounds, so that no sample is disturbed
                read = now
                self.readings.take()
            done = len(group[0].rounds)
            if done >= look:
                while look <= done:
                    look *= 2
                totals = [[sum(r) for r in lane.rounds] for lane in group]
                widths = [half_width([a / b for a, b in zip(totals[0], t)]) for t in totals[1:]]
                if widths and done >= self.job["rounds_min"] and max(widths) <= self.job["precision"]:
                    return "precision"
            if done >= self.job["rounds_min"] and now - start >= self.job["time_limit_s"]:
                return "time limit"
            if (done + 1) * sum(len(lane.feeds) for lane in group) > most:
                return "rounds"

    def sustain(self, lanes: list[Lane]) -> list[dict[str, Any]]:
        """Each arm at the first batch size for `sustained_s`, second by second, with the power where it can be read."""
        rows: list[dict[str, Any]] = []
        energy: dict[str, Any] = {}
        for lane in (lane for lane in lanes if lane.rounds and lane.size == self.job["batch_sizes"][0]):
            self.cool_down()
            power, why = self._sensor()
            if power:
                power.start()
            begin, items, ns, second, total, run = time.monotonic(), 0, 0, 0, 0, lane.call()
            while True:
                for feeds in lane.feeds:
                    start = time.perf_counter_ns()
                    run(lane.answers, feeds, None)
                    ns += time.perf_counter_ns() - start
                    items += lane.size
                    passed = time.monotonic() - begin
                    if passed >= second + 1:
                        rows.append(
                            {
                                "arm": lane.arm["name"],
                                "second": second,
                                "items": items,
                                "ns": ns,
                                "temperature_c": temperature_c(),
                            }
                        )
                        total, items, ns, second = total + items, 0, 0, int(passed)
                    if passed >= self.job["sustained_s"]:
                        break
                self.within()
                if passed >= self.job["sustained_s"]:
                    break
            watts = power.mean_watts() if power else None
            if power is None or watts is None or self.job["sustained_s"] < 10:
                energy[lane.arm["name"]] = {"unavailable": "it takes 10 s of load" if power and watts else why}
            else:
                energy[lane.arm["name"]] = {
                    "joules_per_item": watts * passed / max(1, total + items),
                    "watts": watts,
                    "scope": power.scope,
                    "estimate": power.model,
                    "idle": "included",
                }
        self.energy = energy or self.energy
        return rows

    def split(self, lanes: list[Lane]) -> list[dict[str, Any]]:
        """Requests to the machine that has the other part of each network."""
        place = Path(__file__).with_name("python_split.py")
        spec = importlib.util.spec_from_file_location("python_split", place)
        if spec is None or spec.loader is None:
            raise Stop(f"{place} is missing")
        module = importlib.util.module_from_spec(spec)
        known = {lane.arm["name"]: lane for lane in lanes if lane.reason is None}
        split = dict(self.job["split"], cuts=[cut for cut in self.job["split"]["cuts"] if cut["arm"] in known])
        try:
            spec.loader.exec_module(module)
            rows: list[dict[str, Any]] = module.exchange(split, known, self.np, self.job["seed"], self.within)
        except (OSError, ValueError) as e:
            raise Stop(str(e)) from e
        return rows

    def _sensor(self) -> tuple[Power | None, str]:
        names = self.job["sensors"] or []
        unknown = [name for name in names if name not in SENSORS]
        if unknown:
            return None, f"unknown sensor {unknown[0]!r}; accepted: {', '.join(SENSORS)}"
        for name in names:
            if SENSORS[name][0]():
                return Power(SENSORS[name][0]), SENSORS[name][1]
        return None, SENSORS[names[0]][1] if names else "no sensor of power is named for this device"

    def cool_down(self) -> None:
        """Waits until the device is cool enough, but no longer than `cool_down_s`."""
        most, end = self.job["max_temperature_c"], time.monotonic() + self.job["cool_down_s"]
        celsius = temperature_c()
        if most is None:
            return
        if celsius is None:
            self.note("the temperature cannot be read, so nothing waited for a cool device")
            return
        while celsius is not None and celsius > most:
            if time.monotonic() >= end:
                self.note(
                    f"it still had {celsius:.0f} C after {self.job['cool_down_s']:.0f} s of waiting for {most:.0f} C"
                )
                return
            self.within()
            time.sleep(1)
            celsius = temperature_c()

    def note(self, text: str) -> None:
        """For the result, once."""
        if text not in self.notes:
            self.notes.append(text)

    def within(self) -> None:
        """Raises Deadline if the time of the job is over."""
        if time.monotonic() - self.start > self.job["deadline_s"]:
            raise Deadline

    def watch_clock(self) -> None:
        """Counts jumps of the wall clock, which is never used for a time."""
        wall = time.time() - time.monotonic()
        if abs(wall - self.wall) > CLOCK_JUMP_S:
            self.clock_jumps += 1
        self.wall = wall

    def _pin(self) -> list[int] | None:
        if not self.job["cpus"]:
            return None
        try:
            os.sched_setaffinity(0, self.job["cpus"])
        except (AttributeError, OSError) as e:
            raise Stop(f"it cannot be pinned to the cores {self.job['cpus']}: {e}") from e
        return sorted(os.sched_getaffinity(0))


def fault(error: Exception) -> str:
    """What the runtime says, in one line."""
    return f"ONNX Runtime fails: {' '.join(str(error).split())[:300]}"


def agent_facts(ort: Any, notes: list[str]) -> dict[str, Any]:
    """What measured."""
    return {
        "name": "python",
        "version": VERSION,
        "runtime": "onnxruntime",
        "runtime_version": ort.__version__ if ort else "none",
        "provider": "CPUExecutionProvider",
        "notes": notes,
    }


def read_job(folder: Path) -> dict[str, Any]:
    """The job, after every file was compared with its hash."""
    try:
        job = json.loads((folder / "job.json").read_bytes())
        version = job.get("schema_version")
        if version != SCHEMA_VERSION:
            raise Stop(f"the job has schema version {version}; this agent reads {SCHEMA_VERSION}")
        for name, right in job["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != right:
                raise Stop(f"{name} was changed: its sha256 differs")
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise Stop(f"the job cannot be read: {e}") from e
    return job


def failed(folder: Path, reason: str) -> dict[str, Any] | None:
    """A result that says why there is none; None: not even the job's identity can be read."""
    try:
        job_id = str(json.loads((folder / "job.json").read_bytes())["job_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    now = time.time()
    return {
        "schema_version": SCHEMA_VERSION,
        "job_id": job_id,
        "status": "failed",
        "reason": reason[:1000],
        "agent": agent_facts(None, []),
        "device": device_facts(),
        "emulated": False,
        "threads": 1,
        "cpus": None,
        "started_unix_s": now,
        "ended_unix_s": now,
        "clock_jumps": 0,
        "stopped_by": "rounds",
        "checks": [],
        "arms": [],
        "sustained": None,
        "memory_bytes": None,
        "readings": {},
    }


def write(folder: Path, result: dict[str, Any]) -> None:
    """The result, then its hash: each complete or not there."""
    content = json.dumps(result, allow_nan=False).encode()
    for name, data in (("result.json", content), ("result.sha256", hashlib.sha256(content).hexdigest().encode())):
        _put(folder / name, data)


def _put(path: Path, content: bytes) -> None:
    """Writes a file in one step: whoever asks never finds a part of it. A link that is there is not followed."""
    part = path.with_name(f"{path.name}.part")
    with contextlib.suppress(FileNotFoundError):  # what a process left that was killed
        part.unlink()
    with open(part, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def main(folder: Path) -> None:
    """Measures the job in a folder; the exit code says nothing that the result does not."""
    _put(folder / "agent.pid", str(os.getpid()).encode())
    try:
        limit = float(json.loads((folder / "job.json").read_bytes())["deadline_s"])
    except (OSError, ValueError, KeyError, TypeError):
        limit = 60.0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends this process even if the runtime hangs
    signal.setitimer(signal.ITIMER_REAL, limit + SPARE_S)
    try:
        try:
            import numpy
            import onnxruntime
        except ImportError as e:
            raise Stop(f"{e.name} is not installed for {sys.executable}: pip install numpy onnxruntime") from e
        result: dict[str, Any] | None = Measurement(folder, numpy, onnxruntime).run()
    except (Stop, MemoryError) as e:
        result = failed(folder, str(e) or "there is not enough memory")
    except Exception as e:  # noqa: BLE001 - the one who waits for a result is to know
        result = failed(folder, f"the agent fails: {type(e).__name__}: {e}")
    if result is None:
        sys.exit(f"{folder / 'job.json'} is no job")
    write(folder, result)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: agent.py FOLDER")
    main(Path(sys.argv[1]))
