"""A disk that records its writes: a loop device on a file of a tiny FUSE filesystem, which keeps all that is written and
each flush, in order. From the record, the disk is made again as a power loss at some point may leave it: all that was
written before the last flush, and of the rest any part.

The kernel needs no device mapper for it. The file is read and written past the page cache (FOPEN_DIRECT_IO), so that
nothing comes in another order than the loop device sends it."""

import ctypes
import mmap
import os
import random
import struct
import subprocess
import threading
from pathlib import Path

from bench.system import Failure

MS_NOSUID, MS_NODEV = 2, 4
# Of <linux/fuse.h>.
INIT, LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 26, 1, 2, 3, 14, 15, 16, 17, 18, 20
FLUSH, ACCESS, OPENDIR, BATCH_FORGET, INTERRUPT, DESTROY, FALLOCATE = 25, 34, 27, 42, 36, 38, 43
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22
FOPEN_DIRECT_IO = 1
IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
MAX_WRITE = 1 << 20
NAME = b"disk"
ROOT_NODE, DISK_NODE = 1, 2
# What is written at once or not at all.
SECTOR = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class Position:
    """How much was recorded so far, for other processes: a number in shared memory."""

    def __init__(self):
        self.map = mmap.mmap(-1, 8)

    def get(self):
        return struct.unpack("<Q", self.map[:8])[0]

    def set(self, value):
        self.map[:8] = struct.pack("<Q", value)


class Recorder:
    """Serves the file. `log`: what was written since `start`, as (offset, bytes), and None for each flush."""

    def __init__(self, image, top):
        self.image = open(image, "r+b", buffering=0)
        self.size = os.path.getsize(image)
        self.at = Path(top) / "recorder"
        self.at.mkdir()
        self.log = []
        self.recording = False
        self.position = Position()
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.device},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"recorder", os.fsencode(self.at), b"fuse", MS_NOSUID | MS_NODEV, options):
            raise Failure(f"the recorder cannot be mounted: {os.strerror(ctypes.get_errno())}")
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        self.loop = None

    def attach(self):
        """The loop device."""
        command = ["losetup", "--find", "--show", self.at / os.fsdecode(NAME)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if result.returncode:
            raise Failure(f"losetup: {result.stderr.strip()}")
        self.loop = result.stdout.strip()
        return self.loop

    def close(self):
        if self.loop:
            subprocess.run(["losetup", "--detach", self.loop], check=False, timeout=30)
        subprocess.run(["umount", "-l", self.at], check=False, timeout=30)
        self.thread.join(5)
        self.image.close()

    def add(self, entry):
        if self.recording:
            self.log.append(entry)
            self.position.set(len(self.log))

    def serve(self):
        size = MAX_WRITE + 65536
        while True:
            try:
                request = os.read(self.device, size)
            except InterruptedError:
                continue
            except OSError:
                os.close(self.device)
                return
            length, op, unique, node, *_ = IN_HEADER.unpack_from(request)
            answer = self.answer(op, node, memoryview(request)[IN_HEADER.size : length])
            if answer is None:
                continue
            error, body = (answer, b"") if isinstance(answer, int) else (0, answer)
            try:
                os.writev(self.device, [OUT_HEADER.pack(OUT_HEADER.size + len(body), -error, unique), body])
            except OSError:
                # The request was interrupted.
                pass

    def attributes(self, node):
        mode, size = (0o40755, 0) if node == ROOT_NODE else (0o100600, self.size)
        return ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def answer(self, op, node, body):
        if op == INIT:
            major, minor, readahead = struct.unpack_from("<III", body)
            flags = BIG_WRITES | MAX_PAGES
            return struct.pack("<IIIIHHIIHHIII", major, min(minor, 31), readahead, flags, 12, 10, MAX_WRITE, 1, 256, 0, 0, 0, 0) + bytes(12)
        if op == LOOKUP:
            if bytes(body).rstrip(b"\0") != NAME:
                return 2
            return struct.pack("<QQQQII", DISK_NODE, 0, 3600, 3600, 0, 0) + self.attributes(DISK_NODE)
        if op == GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + self.attributes(node)
        if op == OPEN:
            return struct.pack("<QII", 0, FOPEN_DIRECT_IO, 0)
        if op == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(self.image.fileno(), size, offset)
        if op == WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            data = bytes(body[40 : 40 + size])
            os.pwrite(self.image.fileno(), data, offset)
            self.add((offset, data))
            return struct.pack("<II", size, 0)
        if op == FSYNC:
            self.add(None)
            return b""
        if op == STATFS:
            return bytes(80)
        if op in (FORGET, BATCH_FORGET, INTERRUPT):
            return None
        if op in (RELEASE, FLUSH, DESTROY):
            return b""
        # ENOSYS; of FALLOCATE, which discards, EOPNOTSUPP.
        return 95 if op == FALLOCATE else 38


def rebuild(base, log, cut, target, rng, keep):
    """Makes the disk `target` from the image `base` as a power loss after `cut` entries of the log may leave it. Of what
    was written after the last flush, each sector is there with the chance `keep`."""
    subprocess.run(["cp", "--sparse=always", base, target], check=True, timeout=120)
    durable = max((n + 1 for n in range(cut) if log[n] is None), default=0)
    with open(target, "r+b", buffering=0) as disk:
        for number, entry in enumerate(log[:cut]):
            if entry is None:
                continue
            offset, data = entry
            if number < durable:
                os.pwrite(disk.fileno(), data, offset)
                continue
            for at in range(0, len(data), SECTOR):
                if rng.random() < keep:
                    os.pwrite(disk.fileno(), data[at : at + SECTOR], offset + at)


def cuts(log, count, rng):
    """Points at which the power is lost: half of them right after or before a flush, others anywhere."""
    flushes = [n for n, entry in enumerate(log) if entry is None]
    found = set()
    while len(found) < min(count, len(log)):
        if flushes and rng.random() < 0.5:
            found.add(max(0, min(len(log), rng.choice(flushes) + rng.choice([0, 1]))))
        else:
            found.add(rng.randrange(len(log) + 1))
    return sorted(found)


def chances(rng):
    """How much of what was not flushed is there: nothing, all, or some."""
    return rng.choice([0.0, 1.0, 0.5, 0.9, rng.random()])


__all__ = ["Recorder", "Position", "chances", "cuts", "random", "rebuild"]
