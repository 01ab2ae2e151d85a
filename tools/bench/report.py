"""The result as a table and as JSON."""

import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path

from . import system

BASE = "overlayfs"


def base_of(result):
    """What the others are compared with."""
    names = list(result["backends"])
    return BASE if BASE in names else names[0]


def describe(runner, scenarios, note):
    """Everything that was measured, and what it was measured on."""
    done = [step.label for scenario in scenarios for step in scenario.steps if step.label in runner.samples]
    workloads = []
    for label in done:
        samples = runner.samples[label]
        measured = {name: s.as_json() for name, s in samples.items() if s.seconds or s.error}
        if measured:
            workloads.append({"workload": label, "chart": label in runner.charted, "backends": measured})
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["tools/bench-compare", *sys.argv[1:]]),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "filesystem": filesystem(runner.run_dir),
        "overlay_parameters": overlay_parameters(),
        "fuse_enable_uring": system.uring_is_enabled(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "rounds": runner.rounds,
        "sizes": vars(runner.trees.sizes),
        "note": note,
        "backends": {b.name: b.version() for b in runner.backends},
        "workloads": workloads,
    }


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return ""


def filesystem(path):
    """The type; of ext4 also whether it has a journal, which fsync(2) and new inodes depend on."""
    done = subprocess.run(["stat", "-f", "-c", "%T", path], check=False, capture_output=True, text=True)
    kind = "ext4" if done.stdout.strip() == "ext2/ext3" else done.stdout.strip()
    source = subprocess.run(["findmnt", "-no", "SOURCE", "-T", path], check=False, capture_output=True, text=True)
    device = Path(os.path.realpath(source.stdout.strip())).name
    if kind == "ext4" and not list(Path("/proc/fs/jbd2").glob(f"{device}-*")):
        kind += " without a journal"
    return kind


def overlay_parameters():
    directory = Path("/sys/module/overlay/parameters")
    return {p.name: p.read_text().strip() for p in sorted(directory.glob("*"))}


def spread(measured):
    """Median, smallest and largest in the unit that suits the median."""
    median = measured["median"]
    unit, scale = next(((u, s) for u, s in (("s", 1), ("ms", 1e3)) if median * s >= 1), ("us", 1e6))
    middle, low, high = (digits(measured[key] * scale) for key in ("median", "min", "max"))
    return f"{middle} {unit} ({low}..{high})"


def digits(value):
    """At most three, if they are not before the point."""
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"


def ratio(workload, name, base):
    """The median of a backend as a multiple of the base's; None when one of them is missing."""
    of, to = workload["backends"].get(name, {}), workload["backends"].get(base, {})
    if "median" not in of or not to.get("median"):
        return None
    return of["median"] / to["median"]


def cell(workload, name, base):
    measured = workload["backends"].get(name)
    if measured is None:
        return "-"
    if "error" in measured:
        return measured["error"].partition(":")[0]
    times = ratio(workload, name, base)
    prefix = "" if times is None or name == base else f"{times:.2f}x  "
    return prefix + spread(measured)


def table(result):
    """Medians (smallest..largest), and ratios of the medians to the base, in the form of Markdown."""
    base = base_of(result)
    # The base first: the others are read against it.
    names = [base, *(name for name in result["backends"] if name != base)]
    rows = [["workload", *names]]
    rows += [[w["workload"], *(cell(w, name, base) for name in names)] for w in result["workloads"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def errors(result):
    """One line for each workload that failed or hung."""
    for workload in result["workloads"]:
        for name, measured in workload["backends"].items():
            if "error" in measured and not measured["error"].startswith("not run"):
                yield f"{workload['workload']}: {name}: {measured['error']}"


def requests(result):
    """The requests that each workload made, for backends that count them."""
    for workload in result["workloads"]:
        for name, measured in workload["backends"].items():
            if "requests" in measured:
                counts = sorted(measured["requests"].items(), key=lambda item: -item[1])
                text = ", ".join(f"{op} {count}" for op, count in counts)
                yield f"{workload['workload']}: {name}: {sum(measured['requests'].values())} ({text})"
