"""Mount table, mounts by the kernel's own calls, processes with a time limit."""

import array
import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

# The numbers of these calls are the same on every architecture (asm-generic/unistd.h).
MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 429, 430, 431, 432
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
MOVE_MOUNT_F_EMPTY_PATH = 4
AT_FDCWD = -100
CLOEXEC = 1
MNT_FORCE, MNT_DETACH = 1, 2

# Seconds that a mount may stay busy.
UNMOUNT_LIMIT = 10

_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """A command or mount that did not do what it should."""


class Hung(Failure):
    """It had no end within its time limit."""


def _call(number, *args):
    result = _libc.syscall(number, *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount_overlay(lowers, upper, work, at):
    """Mounts by fsconfig(2): the one way for long lists of lowers, whose names need not fit one page."""
    fs = _call(FSOPEN, b"overlay", CLOEXEC)
    try:
        for key, value in [("lowerdir+", lower) for lower in lowers] + [("upperdir", upper), ("workdir", work)]:
            _call(FSCONFIG, fs, FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)
        _call(FSCONFIG, fs, FSCONFIG_CMD_CREATE, None, None, 0)
        mount = _call(FSMOUNT, fs, CLOEXEC, 0)
        try:
            _call(MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(at), MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(mount)
    finally:
        os.close(fs)


def mount_overlay_by_names(lowers, upper, work, at):
    """Mounts by mount(8), for kernels without `lowerdir+` (before 6.8): short relative names, so that many
    fit the page that mount(2) takes."""
    top = os.path.commonpath([os.fspath(p) for p in [*lowers, upper, work]])
    names = [os.path.relpath(lower, top) for lower in lowers]
    options = f"lowerdir={':'.join(names)},upperdir={os.path.relpath(upper, top)},workdir={os.path.relpath(work, top)}"
    run(["mount", "-t", "overlay", "overlay", "-o", options, at], 30, cwd=top)


def mounts_below(top):
    """(mount point, filesystem) of each mount below `top`, the innermost first. The table is
    read, nothing touched: to look at a hung mount would hang us."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        at = fields[4].encode("ascii", "surrogateescape").decode("unicode_escape")
        if at.startswith(os.fspath(top) + "/"):
            found.append((at, right.split()[0]))
    return found[::-1]


def abort(at):
    """Cuts the connection of a FUSE mount, which ends every request that waits for an answer. By the call
    itself: umount(8) may look at the mount first, and hang."""
    _libc.umount2(os.fsencode(at), MNT_FORCE)


def unmount_below(top, force=False):
    """Unmounts everything below `top`; what is busy or hung is cut off and taken out of the tree."""
    for at, kind in mounts_below(top):
        if not force and unmount(at):
            continue
        if kind.startswith("fuse"):
            abort(at)
        _libc.umount2(os.fsencode(at), MNT_DETACH)


def unmount(at):
    """Unmounts what may be in use for another moment; gives whether it was done."""
    end = time.monotonic() + UNMOUNT_LIMIT
    while time.monotonic() < end:
        process = subprocess.Popen(["umount", at], stderr=subprocess.DEVNULL)
        try:
            if process.wait(max(0.1, end - time.monotonic())) == 0:
                return True
        except subprocess.TimeoutExpired:
            # It waits for an answer, and ends when the connection is cut.
            process.kill()
            return False
        time.sleep(0.02)
    return False


def run(argv, limit, cwd=None, env=None, codes=(0,), top=None, quiet=False):
    """Runs a command; gives seconds and standard output, which `quiet` drops. When it has no end within
    `limit` seconds, mounts below `top` are cut off: it may wait for one of them and take no signal."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [os.fspath(a) for a in argv],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except BaseException as error:
        end_group(process, top)
        if isinstance(error, subprocess.TimeoutExpired):
            raise Hung(f"no end within {limit:.0f} s: {argv[0]}") from None
        raise
    seconds = time.perf_counter() - begin
    if process.returncode not in codes:
        text = err.decode(errors="replace").strip().splitlines()
        said = text[-1][:200] if text else ""
        raise Failure(f"{Path(argv[0]).name} ended with {process.returncode}: {said}")
    return seconds, (out or b"").decode(errors="replace")


def end_group(process, top):
    """Kills a command and what it started."""
    for force in (False, True):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if force and top is not None:
            for at, kind in mounts_below(top):
                if kind.startswith("fuse"):
                    abort(at)
        try:
            process.communicate(timeout=5)
            return
        except subprocess.TimeoutExpired:
            continue


def write_back(top):
    """Writes back what is below `top`'s filesystem, so that it is not done in the time of what comes next."""
    subprocess.run(["sync", "-f", top], check=False)


def drop_caches(top):
    """Writes back what is below `top`'s filesystem and drops pages, dentries and inodes."""
    write_back(top)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def spread_directories(top):
    """Has ext4 put each directory that is made in `top` in a part of the disk of its own (chattr(1), +T): what was
    freed in another one is not in its way. Elsewhere nothing happens."""
    get_flags, set_flags, topdir = 0x80086601, 0x40086602, 0x20000
    fd = os.open(top, os.O_RDONLY)
    try:
        flags = array.array("i", [0])
        fcntl.ioctl(fd, get_flags, flags)
        flags[0] |= topdir
        fcntl.ioctl(fd, set_flags, flags)
    except OSError:
        pass
    finally:
        os.close(fd)


def remove_large_files(top):
    """Frees the space of large files below `top`, where nothing may be mounted any more. The small ones stay until the
    end of the run: see bench-compare."""
    if mounts_below(top):
        raise Failure(f"something is still mounted below {top}")
    subprocess.run(["find", top, "-xdev", "-type", "f", "-size", "+1M", "-delete"], check=False)
    write_back(top)


def process_of(mountpoint):
    """The process whose arguments name the mount point: a daemon that serves it."""
    name = os.fsencode(mountpoint)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                args = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if name in args:
                return int(entry.name)
    return None


def has_ended(pid):
    """Whether a process has ended, whether or not its parent has asked for it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def catches(pid, number):
    """Whether a process has a handler for a signal, without which the signal would end it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


URING = Path("/sys/module/fuse/parameters/enable_uring")


def uring_is_enabled():
    """Whether the kernel lets requests come over io_uring."""
    return URING.exists() and URING.read_text().strip() == "Y"


@contextlib.contextmanager
def requests_over_io_uring():
    """Lets requests come over io_uring meanwhile, where the kernel can."""
    if not URING.exists() or uring_is_enabled():
        yield
        return
    URING.write_text("Y")
    try:
        yield
    finally:
        URING.write_text("N")
