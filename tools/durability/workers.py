"""Processes that change a tree at random, and tell what was acknowledged."""

import ctypes
import errno
import os
import pickle
import random
import signal

from . import model as models
from .model import ATTRIBUTE, Inode, Model

RENAME_EXCHANGE = 2
AT_FDCWD = -100
# What a request gets whose daemon dies before or while it is served.
DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED)
NAMES = "abcdefgh"
COMMON = "common"
SIZES = (1, 100, 4096, 5000, 20000)

_libc = ctypes.CDLL(None, use_errno=True)


def exchange(a, b):
    if _libc.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def part(found, worker):
    """What is a worker's part of a tree."""
    top, prefix = f"w{worker}", f"{COMMON}/{worker}_"
    return {path: what for path, what in found.items() if path == top or path.startswith((top + "/", prefix))}


def content(rng, size):
    return rng.randbytes(min(size, 64)).ljust(size, bytes([rng.randrange(1, 256)]))


def make_lowers(lowers, workers, rng, hardlinks):
    """Fills the lowers, topmost first, and gives the model of each worker's part."""
    result = []
    for lower in lowers:
        (lower / COMMON).mkdir(parents=True)
        (lower / COMMON).chmod(0o755)
    for worker in range(workers):
        model = Model()
        top = f"w{worker}"
        wanted = [(top, "d")]
        for a in "abc":
            wanted.append((f"{top}/{a}", "d"))
            wanted += [(f"{top}/{a}/{b}", rng.choice("fffdl")) for b in NAMES[:4]]
            wanted += [(f"{top}/{a}/{b}/{c}", "f") for b in NAMES[:4] for c in "ab" if (f"{top}/{a}/{b}", "d") in wanted]
        wanted += [(f"{top}/{a}", "f") for a in "def"]
        wanted += [(f"{COMMON}/{worker}_{a}", rng.choice("ffd")) for a in NAMES[:4]]
        for path, kind in wanted:
            holders = [lower for lower in lowers if rng.random() < 0.6] or [rng.choice(lowers)]
            if kind == "d":
                model.add(path, Inode("d", 0o755))
                for holder in holders:
                    make_directory(holder, path)
                continue
            for holder in holders:
                make_directory(holder, os.path.dirname(path))
            if kind == "l":
                os.symlink("target", holders[0] / path)
                model.add(path, Inode("l", 0o777, "target"))
                for other in lowers[lowers.index(holders[0]) + 1 :]:
                    if other in holders:
                        (other / path).write_bytes(b"hidden")
                continue
            data = content(rng, rng.choice(SIZES))
            for holder in holders:
                (holder / path).write_bytes(data if holder == holders[0] else b"hidden")
                (holder / path).chmod(0o644)
            model.add(path, Inode("f", 0o644, versions=[(0, data)]))
            if hardlinks and rng.random() < 0.2 and path.startswith(top):
                other = path + "_link"
                os.link(holders[0] / path, holders[0] / other)
                model.tree[other] = model.tree[path]
        model.begin()
        result.append(model)
    return result


def make_directory(lower, path):
    for end in [n for n, c in enumerate(path) if c == "/"] + [len(path)]:
        if path[:end]:
            (lower / path[:end]).mkdir(exist_ok=True)
            (lower / path[:end]).chmod(0o755)


class Chooser:
    """Finds the next operation, one that has to succeed."""

    def __init__(self, model, worker, rng, syncs):
        self.model, self.rng, self.worker, self.syncs = model, rng, worker, syncs
        self.fixed = {f"w{worker}"}

    def paths(self, kinds, fixed=True):
        return [p for p, n in self.model.tree.items() if self.model.inodes[n].kind in kinds and (fixed or p not in self.fixed)]

    def pick(self, kinds, fixed=True):
        found = self.paths(kinds, fixed)
        return self.rng.choice(found) if found else None

    def place(self):
        """A name that may or may not be taken."""
        if self.rng.random() < 0.25:
            return f"{COMMON}/{self.worker}_{self.rng.choice(NAMES)}"
        directory = self.pick("d")
        return f"{directory}/{self.rng.choice(NAMES)}"

    def free(self):
        for _ in range(20):
            path = self.place()
            if path not in self.model.tree and path.count("/") < 7:
                return path
        return None

    def empty(self):
        return [p for p in self.paths("d", False) if not self.model.children(p)]

    def next(self):
        rng = self.rng
        while True:
            name = rng.choices(*zip(*self.weights()))[0]
            found = getattr(self, f"choose_{name}")(rng)
            if found and None not in found:
                return found

    def weights(self):
        return [("create", 12), ("write", 12), ("truncate", 5), ("otrunc", 3), ("unlink", 12), ("mkdir", 8), ("rmdir", 8),
                ("rename", 16), ("rename_dir", 10), ("exchange", 5), ("link", 4), ("symlink", 3), ("chmod", 8),
                ("setxattr", 4), ("fsync", self.syncs)]  # fmt: skip

    def choose_create(self, rng):
        return ("create", self.free(), rng.choice([0o644, 0o600]))

    def choose_mkdir(self, _rng):
        return ("mkdir", self.free(), 0o755)

    def choose_symlink(self, rng):
        return ("symlink", self.free(), rng.choice(NAMES))

    def choose_write(self, rng):
        path = self.pick("f")
        if path is None:
            return None
        size = len(self.model.at(path).versions[-1][1])
        offset = rng.choice([0, size, rng.randrange(size + 1)])
        return ("write", path, offset, content(rng, rng.choice(SIZES)))

    def choose_truncate(self, rng):
        path = self.pick("f")
        return path and ("truncate", path, rng.choice([0, 10, 4096, rng.randrange(1, len(self.model.at(path).versions[-1][1]) + 2)]))

    def choose_otrunc(self, _rng):
        # The same in effect, by open(2).
        return ("truncate", self.pick("f"), 0, "open")

    def choose_unlink(self, _rng):
        return ("unlink", self.pick("fl"))

    def choose_rmdir(self, rng):
        empty = self.empty()
        return ("rmdir", rng.choice(empty)) if empty else None

    def choose_rename(self, _rng):
        path, target = self.pick("fl"), self.place()
        if path is None or target == path:
            return None
        if target in self.model.tree and (self.model.at(target).kind == "d" or self.model.tree[target] == self.model.tree[path]):
            return None
        return ("rename", path, target)

    def choose_rename_dir(self, rng):
        path = self.pick("d", False)
        empty = [p for p in self.empty() if p != path]
        target = rng.choice(empty) if empty and rng.random() < 0.4 else self.free()
        if path is None or target is None or (target + "/").startswith(path + "/") or path.startswith(target + "/"):
            return None
        return ("rename", path, target)

    def choose_exchange(self, _rng):
        a, b = self.pick("fld", False), self.pick("fld", False)
        if a is None or b is None or (a + "/").startswith(b + "/") or (b + "/").startswith(a + "/"):
            return None
        return None if self.model.tree[a] == self.model.tree[b] else ("exchange", a, b)

    def choose_link(self, _rng):
        return ("link", self.pick("f"), self.free())

    def choose_chmod(self, rng):
        path = self.pick("fd", False)
        if path is None:
            return None
        return ("chmod", path, rng.choice([0o755, 0o700] if self.model.at(path).kind == "d" else [0o644, 0o600, 0o444]))

    def choose_setxattr(self, rng):
        return ("setxattr", self.pick("fd", False), rng.randbytes(4))

    def choose_fsync(self, rng):
        return ("fsync", self.pick("f" if rng.random() < 0.7 else "d"))


def execute(root, operation):
    """Does one operation. It has one effect, at one instant."""
    name, path, *rest = operation
    path = os.path.join(root, path)
    if name in ("rename", "exchange", "link"):
        rest[0] = os.path.join(root, rest[0])
    if name == "create":
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, rest[0])
        closing(fd, lambda: None)
    elif name == "mkdir":
        os.mkdir(path, rest[0])
    elif name == "symlink":
        os.symlink(rest[0], path)
    elif name == "write":
        fd = os.open(path, os.O_RDWR)
        closing(fd, lambda: whole(os.pwrite(fd, rest[1], rest[0]), len(rest[1])))
    elif name == "truncate":
        if len(rest) > 1:
            closing(os.open(path, os.O_WRONLY | os.O_TRUNC), lambda: None)
        else:
            os.truncate(path, rest[0])
    elif name == "unlink":
        os.unlink(path)
    elif name == "rmdir":
        os.rmdir(path)
    elif name == "rename":
        os.rename(path, rest[0])
    elif name == "exchange":
        exchange(path, rest[0])
    elif name == "link":
        os.link(path, rest[0])
    elif name == "chmod":
        os.chmod(path, rest[0])
    elif name == "setxattr":
        os.setxattr(path, ATTRIBUTE, rest[0])
    elif name == "fsync":
        fd = os.open(path, os.O_RDONLY)
        closing(fd, lambda: os.fsync(fd))


def closing(fd, action):
    try:
        action()
    finally:
        os.close(fd)


def whole(done, size):
    """The kernel writes some requests at a time, and tells how far it came when one fails."""
    if done != size:
        raise OSError(errno.ECONNABORTED, f"{done} of {size} bytes were written")


class Outcome:
    """How a worker ended: its model, the operation without an answer, and an error that should not be."""

    def __init__(self, model, pending, error):
        self.model, self.pending, self.error = model, pending, error


def work(root, model, worker, seed, limit, position, syncs, may_fail):
    """Operations until the daemon dies or `limit` of them are done."""
    rng = random.Random(seed)
    chooser = Chooser(model, worker, rng, syncs)
    os.umask(0)
    for _ in range(limit):
        operation = chooser.next()
        begin = position()
        try:
            execute(root, operation)
        except OSError as error:
            if error.errno in DEAD:
                return Outcome(model, operation, None)
            if may_fail(operation, error):
                continue
            return Outcome(model, None, f"{models.brief(operation)}: {error}")
        model.apply(operation, begin, position())
    return Outcome(model, None, None)


class Workers:
    """Workers in processes of their own."""

    def __init__(self, root, model_list, seed, limit, position=lambda: 0, syncs=3, may_fail=lambda *_: False):
        self.running = []
        for number, model in enumerate(model_list):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    os.close(read)
                    outcome = work(os.fspath(root), model, number, f"{seed}/{number}", limit, position, syncs, may_fail)
                    with os.fdopen(write, "wb") as pipe:
                        pickle.dump(outcome, pipe)
                    status = 0
                finally:
                    os._exit(status)
            os.close(write)
            self.running.append((pid, os.fdopen(read, "rb")))

    def outcomes(self):
        """Waits for all."""
        found = []
        for pid, pipe in self.running:
            with pipe:
                data = pipe.read()
            os.waitpid(pid, 0)
            found.append(pickle.loads(data) if data else Outcome(None, None, "the worker has died"))
        return found


__all__ = ["Outcome", "Workers", "make_lowers", "models", "part"]
