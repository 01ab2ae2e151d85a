"""Runs the scenarios on all backends in turn, and keeps what was measured."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from . import system
from .backends import Native, Place
from .system import Failure, Hung
from .trees import git_environment

PROBE_SOURCE = Path(__file__).with_name("probe.c")


class Samples:
    """What was measured of one workload on one backend."""

    def __init__(self):
        self.seconds = []
        self.requests = {}
        self.memory_kib = 0
        self.error = None

    def record(self, seconds, before, after):
        self.seconds.append(seconds)
        if before is None or after is None:
            return
        names = {name for name in after if name.startswith("request ")}
        counts = {name.removeprefix("request "): int(after[name] - before.get(name, 0)) for name in sorted(names)}
        self.requests = {name: count for name, count in counts.items() if count}
        self.memory_kib = int(after["peak_kib"])

    def as_json(self):
        if self.error:
            return {"error": self.error, "seconds": self.seconds}
        result = {
            "median": statistics.median(self.seconds),
            "min": min(self.seconds),
            "max": max(self.seconds),
            "seconds": [round(s, 7) for s in self.seconds],
        }
        if self.requests:
            result |= {"requests": self.requests, "peak_kib": self.memory_kib}
        return result


class Runner:
    def __init__(self, trees, backends, run_dir, limit, say):
        self.trees = trees
        self.backends = backends
        self.run_dir = run_dir
        self.limit = limit
        self.say = say
        self.samples = {}
        self.charted = set()
        self.given_up = set()
        self.rounds = 0
        self.probe = run_dir / "probe"
        self.env = {
            **git_environment(),
            "T": os.fspath(trees.top),
            "P": os.fspath(self.probe),
            "PY": sys.executable,
            "N": str(os.cpu_count()),
            "LC_ALL": "C",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def prepare(self):
        self.run_dir.mkdir(parents=True, exist_ok=True)
        system.spread_directories(self.run_dir)
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", self.probe, PROBE_SOURCE], check=True)

    def run(self, scenarios, rounds, wanted, budget=None):
        """Runs all scenarios `rounds` times, each on all backends one after the other. After the first round
        none begins that is not likely to end within `budget` seconds."""
        for scenario in scenarios:
            for step in scenario.steps:
                if wanted(step.label):
                    self.samples[step.label] = {b.name: Samples() for b in self.backends}
                    if step.chart:
                        self.charted.add(step.label)
        begin = time.monotonic()
        for turn in range(rounds):
            if turn and budget and (time.monotonic() - begin) * (turn + 1) / turn > budget:
                self.say(f"no time for round {turn + 1}", keep=True)
                break
            for i, scenario in enumerate(scenarios):
                done = f"{100 * (turn * len(scenarios) + i) // (rounds * len(scenarios)):3} %, round {turn + 1}"
                # What one leaves behind, in memory or for the disk to do, should not always meet the same next one.
                for backend in self.backends if turn % 2 == 0 else reversed(self.backends):
                    if (i, backend.name) not in self.given_up and not (backend.chart_only and turn % 2):
                        self.one((turn, i), scenario.of(backend), backend, f"{done} of {rounds}")
            self.rounds = turn + 1

    def one(self, turn_and_number, scenario, backend, done):
        """One round of a scenario on one backend."""
        if not scenario.steps:
            return
        turn, number = turn_and_number
        name = f"{turn}-{number}-{backend.name.replace(':', '-')}"
        place = Place(self.run_dir / name, self.trees.stacks[scenario.stack])
        at = scenario.steps[0]
        try:
            if scenario.mounts:
                self.say(f"{done}: {at.label}: {backend.name}")
                self.measure_mount(at, backend, place)
                return
            if scenario.sources:
                self.warm(scenario, backend, place)
            root = self.enter(scenario, backend, place)
            for i, at in enumerate(scenario.steps):
                self.say(f"{done}: {at.label}: {backend.name}")
                if at.cold:
                    if i > 0:
                        backend.unmount(place)
                        root = self.enter(scenario, backend, place, again=True)
                    system.drop_caches(self.run_dir)
                self.measure(at, backend, place, root)
        except (Failure, OSError) as error:
            # Later steps build on this one, and a hung mount would cost the time limit in each round.
            self.given_up.add((number, backend.name))
            steps = scenario.steps[scenario.steps.index(at) :]
            for step in steps:
                if step.label in self.samples:
                    word = "hung" if isinstance(error, Hung) else "failed"
                    reason = f"{word}: {error}" if step is at else f"not run: {at.label} {word}"
                    self.samples[step.label][backend.name].error = reason
            self.say(f"{at.label}: {backend.name}: {error}", keep=True)
        finally:
            try:
                backend.unmount(place)
            finally:
                system.unmount_below(place.top, force=True)
                system.remove_large_files(place.top)

    def enter(self, scenario, backend, place, again=False):
        """Mounts, or gives a plain directory with copies of what the steps change."""
        backend.mount(place)
        if not isinstance(backend, Native):
            return backend.root(place)
        if not scenario.changes and not scenario.writes:
            return place.stack.merged
        if not again:
            for name in scenario.changes:
                system.run(["cp", "-a", place.stack.merged / name, place.mnt], self.limit)
        return place.mnt

    def warm(self, scenario, backend, place):
        """Reads what the steps read, below the mount: the first backend after a cold workload of all should
        not be the one that reads it from the disk. Directories of the tree are read in all layers."""
        stack = place.stack
        tops = [stack.merged] if isinstance(backend, Native) else stack.lowers
        paths = [top / name for name in scenario.sources for top in (*tops, self.trees.top)]
        script = 'tar -cf - "$@" | cat; printf "int x;" | cc -x c -c -o /dev/null -; git --version'
        argv = ["sh", "-c", script, "sh", *(p for p in paths if p.exists())]
        system.run(argv, self.limit, quiet=True)

    def measure(self, step, backend, place, root):
        env = {**self.env, "M": os.fspath(root), "L": os.fspath(place.stack.lowers[0])}

        def run(command, cwd, quiet, codes=(0,)):
            # The shell enters the tree: that must not hang us either.
            argv = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", root / cwd]
            argv += ["sh", "-c", command] if isinstance(command, str) else ["fio", *command]
            return system.run(argv, self.limit, env=env, codes=codes, top=place.top, quiet=quiet)

        if step.before:
            run(f"set -e; {step.before}", ".", quiet=True)
        if step.warm:
            run(step.warm, step.cwd, quiet=True)
        if step.settle:
            system.write_back(self.run_dir)
        before = backend.statistics(place)
        seconds, out = run(step.command, step.cwd, quiet=step.by == "clock", codes=step.codes)
        if step.by == "probe":
            seconds = max(float(line) for line in out.split())
        elif step.by == "fio":
            seconds = fio_seconds(out)
        # A release is sent without waiting: those of the step should be among its requests.
        time.sleep(0.002)
        after = backend.statistics(place)
        if step.label in self.samples:
            self.samples[step.label][backend.name].record(seconds, before, after)

    def measure_mount(self, step, backend, place):
        if isinstance(backend, Native):
            return
        begin = time.perf_counter()
        backend.mount(place)
        system.run(["stat", backend.root(place) / "dir/file"], self.limit, top=place.top, quiet=True)
        seconds = time.perf_counter() - begin
        if step.label in self.samples:
            self.samples[step.label][backend.name].record(seconds, None, None)


def fio_seconds(out):
    """The time of the job that took longest."""
    job = json.loads(out[out.index("{") :])["jobs"][0]
    if job["error"]:
        raise Failure(f"fio: error {job['error']}")
    return max(job[kind]["runtime"] for kind in ("read", "write")) / 1000
