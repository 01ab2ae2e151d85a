"""Layers and mounts for the tests of durability."""

import copy
import errno
import hashlib
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

from bench import backends, system
from bench.backends import REPO, Place
from bench.system import Failure

DEBUG = REPO / "target/debug/unionfs"
RELEASE = REPO / "target/release/unionfs"
WAIT = 10


def backend(name, program=None):
    """What mounts: `unionfs`, `overlayfs`, `fuse-overlayfs-2`."""
    if name == "overlayfs":
        return backends.Overlay()
    if name == "fuse-overlayfs-2":
        found = backends.CratesFuseOverlayfs()
    else:
        found = backends.Ours("unionfs", program or Path(os.environ.get("UNIONFS", RELEASE)))
    found.prepare()
    return found


def with_options(mounting, options):
    if not options:
        return mounting
    mounting = copy.copy(mounting)
    mounting.options = options
    return mounting


def make(top, lowers):
    """Empty layers."""
    paths = [top / f"l{n}" for n in range(lowers)]
    for path in paths:
        path.mkdir(parents=True)
    return Place(top, SimpleNamespace(lowers=paths))


class Expects:
    """What can't be done with some options."""

    def __init__(self, options, cleans=True):
        self.hardlinks = "index=off" not in options
        self.no_redirects = "redirect_dir=follow" in options
        # Mounts in the place of a dead mount.
        self.cleans = cleans

    def may_fail(self, operation, error):
        moves = operation[0] in ("rename", "exchange")
        return moves and error.errno == errno.EXDEV and self.no_redirects


class ExpectsLess:
    """Other filesystems: what can't be done there is not done."""

    hardlinks, cleans = False, False

    def may_fail(self, _operation, _error):
        return True


def leftovers(place):
    """What a mount finds in its work directory has to go."""
    found = []
    work = place.work / "work"
    for path in sorted(work.iterdir()) if work.is_dir() else []:
        if path.name.startswith("#"):
            found.append(f"left in the work directory: {path.name}")
    return found


def fingerprint(paths):
    """Of all that is in some directories."""
    digest = hashlib.sha256()
    for top in paths:
        for directory, names, files in os.walk(top):
            names.sort()
            for name in [".", *sorted(names), *sorted(files)]:
                path = os.path.join(directory, name)
                st = os.lstat(path)
                digest.update(f"{path} {st.st_mode} {st.st_uid} {st.st_size} {st.st_mtime_ns} {st.st_nlink}".encode())
                if stat.S_ISREG(st.st_mode):
                    digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def wait_gone(pid):
    end = time.monotonic() + WAIT
    while not system.has_ended(pid):
        if time.monotonic() > end:
            raise Failure(f"process {pid} stays after SIGKILL")
        time.sleep(0.001)
