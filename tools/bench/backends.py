"""The filesystems that are compared: how each is had and mounted."""

import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import system
from .system import Failure

REPO = Path(__file__).resolve().parents[2]
MOUNT_LIMIT = 30


class Place:
    """Directories of one mount: lowers (topmost first), and a fresh upper, work directory and mount point."""

    def __init__(self, top, stack):
        self.top = top
        self.stack = stack
        self.upper, self.work, self.mnt, self.log = top / "upper", top / "work", top / "mnt", top / "log"
        for path in (self.upper, self.work, self.mnt):
            path.mkdir(parents=True)


class Backend:
    """A way to show a stack as one tree."""

    name = ""
    # An older peer, many times slower: runs the workloads of the chart only, those of few layers, every other round.
    chart_only = False

    def version(self):
        return ""

    def prepare(self):
        """Gets the program; raises Failure when it can't be had."""

    def mount(self, place):
        raise NotImplementedError

    def unmount(self, place):
        system.unmount_below(place.top)

    def root(self, place):
        return place.mnt

    def statistics(self, _place):
        return None


class Native(Backend):
    """A plain directory with the merged tree. Workloads that change it get a copy."""

    name = "native"

    def mount(self, place):
        pass

    def unmount(self, place):
        pass

    def root(self, place):
        return place.mnt


class Overlay(Backend):
    name = "overlayfs"

    def version(self):
        return os.uname().release

    def mount(self, place):
        args = (place.stack.lowers, place.upper, place.work, place.mnt)
        try:
            system.mount_overlay(*args)
        except OSError as error:
            try:
                system.mount_overlay_by_names(*args)
            except Failure as other:
                raise Failure(f"overlayfs cannot be mounted: {error.strerror}; {other}") from None


class Program(Backend):
    """A FUSE filesystem that goes to the background once it is mounted."""

    program = None

    def command(self, place):
        raise NotImplementedError

    def mount(self, place):
        system.run(self.command(place), MOUNT_LIMIT, top=place.top)

    def unmount(self, place):
        pid = system.process_of(place.mnt)
        super().unmount(place)
        # It holds the layers for a moment after its mount is gone.
        end = time.monotonic() + 10
        while pid and not system.has_ended(pid):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.002)


def joined(paths):
    return ":".join(os.fspath(p).replace(":", r"\:") for p in paths)


class FuseOverlayfs(Program):
    def __init__(self, name, program):
        self.name = name
        self.program = program

    def version(self):
        _, out = system.run([self.program, "--version"], 10)
        line = [line for line in out.splitlines() if "fuse-overlayfs" in line]
        return line[0].replace("version", "").replace(":", "").strip() if line else ""

    def command(self, place):
        options = f"lowerdir={joined(place.stack.lowers)},upperdir={place.upper},workdir={place.work}"
        return [self.program, "-o", options, place.mnt]


class CratesFuseOverlayfs(FuseOverlayfs):
    """The version that cargo installs, which is newer than Debian's."""

    VERSION = "2.0.0"

    def __init__(self):
        super().__init__("fuse-overlayfs-2", REPO / "target/tools/bin/fuse-overlayfs")

    def prepare(self):
        if not self.program.exists():
            command = ["cargo", "install", "fuse-overlayfs", "--version", f"={self.VERSION}", "--locked", "--root"]
            build([*command, REPO / "target/tools"])


class DebianFuseOverlayfs(FuseOverlayfs):
    chart_only = True

    def __init__(self):
        super().__init__("fuse-overlayfs-1", "/usr/bin/fuse-overlayfs")

    def prepare(self):
        package(self.program, "fuse-overlayfs")


class UnionfsFuse(Program):
    chart_only = True
    name = "unionfs-fuse"
    program = "/usr/bin/unionfs-fuse"

    def version(self):
        result = subprocess.run([self.program, "-V"], check=False, capture_output=True, text=True)
        text = (result.stdout + result.stderr).splitlines()
        return text[0].replace("version:", "").strip() if text else ""

    def prepare(self):
        package(self.program, "unionfs-fuse")

    def command(self, place):
        branches = ":".join([f"{place.upper}=RW", *(f"{lower}=RO" for lower in place.stack.lowers)])
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        return [self.program, "-o", f"cow,allow_other,max_files={min(files, 65536)}", branches, place.mnt]


class Ours(Program):
    """This project's program, possibly several builds or options of it under names."""

    def __init__(self, name, program, options=""):
        self.name = name
        self.program = Path(program)
        self.options = options
        self.is_default = self.program == REPO / "target/release/unionfs"

    def version(self):
        return system.run([self.program, "--version"], 10)[1].strip() + (f" ({self.options})" if self.options else "")

    def prepare(self):
        if self.program.exists():
            return
        if not self.is_default:
            raise Failure(f"there is no {self.program}")
        build(["cargo", "build", "--release", "--locked"])

    def command(self, place):
        options = f"log={place.log}" + (f",{self.options}" if self.options else "")
        command = [self.program, "mount", "-o", options, "--work", place.work]
        return [*command, joined(place.stack.lowers), place.upper, place.mnt]

    def statistics(self, place):
        """The daemon's statistics now, by name; None when it gives none."""
        pid = system.process_of(place.mnt)
        if pid is None or not system.catches(pid, signal.SIGUSR1):
            return None
        begin = place.log.stat().st_size
        os.kill(pid, signal.SIGUSR1)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            text = place.log.read_bytes()[begin:].decode(errors="replace")
            lines = text.splitlines(keepends=True)
            if lines and lines[-1].startswith("requests ") and lines[-1].endswith("\n"):
                return dict(parse(line) for line in lines if is_figure(line))
            time.sleep(0.001)
        return None


def is_figure(line):
    try:
        parse(line)
    except ValueError:
        return False
    return True


def parse(line):
    name, value = line.rsplit(maxsplit=1)
    return name, float(value)


def build(argv):
    """Output goes to standard error: a build takes minutes and should be seen."""
    print(f"running {' '.join(map(str, argv))}", flush=True)
    if subprocess.run(argv, check=False, cwd=REPO, stdin=subprocess.DEVNULL).returncode:
        raise Failure(f"{argv[0]} {argv[1]} has failed")


def package(program, name):
    if shutil.which(program):
        return
    command = ["apt-get", "-qy", "-o", "Dpkg::Use-Pty=0", "install", "--no-install-recommends", name]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for argv in (["apt-get", "-q", "update"], command):
        subprocess.run(argv, check=False, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if not shutil.which(program):
        raise Failure(f"the package {name} cannot be installed")


def variant(name):
    """The default build under the name `unionfs:OPTION+OPTION`, with these mount options; None for other names."""
    base, colon, options = name.partition(":")
    if base != "unionfs" or not colon or not options:
        return None
    return Ours(name, REPO / "target/release/unionfs", options.replace("+", ","))


def all_backends(binaries):
    ours = [Ours("unionfs", REPO / "target/release/unionfs")] if not binaries else []
    for spec in binaries:
        name, equals, rest = spec.partition("=")
        path, _, options = rest.partition(":")
        if not equals or not path:
            raise Failure(f"--binary {spec}: write NAME=PATH or NAME=PATH:OPTIONS")
        ours.append(Ours(name, Path(path).resolve(), options))
    return [Native(), Overlay(), CratesFuseOverlayfs(), DebianFuseOverlayfs(), UnionfsFuse(), *ours]
