"""What a sequence of operations makes of a tree, and which trees are allowed after a crash.

Each worker has a part of the tree of its own, so its operations come one after the other; parts lie in the same
directories as those of others. A tree after a crash is allowed if it is the one after some operation of the sequence:
not an earlier one than what was promised to stay, and not a later one than what was begun. That is: each operation is
there or is not, and of two the first is there if the second is."""

import copy
import os
import stat
from dataclasses import dataclass, field

# What a filesystem writes at once.
BLOCK = 4096
ATTRIBUTE = "user.state"


@dataclass
class Inode:
    kind: str
    mode: int
    target: str = ""
    attribute: bytes = b""
    # All contents it ever had: where in the record the change began, and the content.
    versions: list = field(default_factory=list)
    # Which of them were brought to the device: where in the record that was done, and the version's number.
    synced: list = field(default_factory=list)
    # The number of the last operation that changed more than content.
    changed: int = -1


@dataclass
class Step:
    operation: tuple
    begin: int
    end: int
    # The number of the last operation that is on the device with this one.
    durable: int
    snapshot: dict


class Model:
    def __init__(self):
        self.inodes = {}
        self.tree = {}
        self.steps = []
        self.next = 0

    def add(self, path, inode):
        self.inodes[self.next] = inode
        self.tree[path] = self.next
        self.next += 1

    def at(self, path):
        return self.inodes[self.tree[path]]

    def snapshot(self):
        return {path: self.entry(number) for path, number in self.tree.items()}

    def entry(self, number):
        inode = self.inodes[number]
        what = inode.target if inode.kind == "l" else number if inode.kind == "f" else None
        return (inode.kind, inode.mode, inode.attribute, what)

    def begin(self):
        """The tree as it is now is the first one, and all of it is on the device."""
        for inode in self.inodes.values():
            inode.versions, inode.changed = inode.versions[-1:], 0
            inode.synced = [(-1, 0)] if inode.versions else []
        self.steps = [Step(("begin",), -1, -1, 0, self.snapshot())]

    def children(self, path):
        return [p for p in self.tree if p.startswith(path + "/")]

    def apply(self, operation, begin=0, end=0):
        number, durable = len(self.steps), 0
        name, path, *rest = operation

        def changed(*paths):
            for changed_path in paths:
                if changed_path in self.tree:
                    self.at(changed_path).changed = number

        if name in ("create", "mkdir", "symlink"):
            kind = {"create": "f", "mkdir": "d", "symlink": "l"}[name]
            inode = Inode(kind, 0o777 if kind == "l" else rest[0], rest[0] if kind == "l" else "")
            if kind == "f":
                inode.versions, inode.synced = [(begin, b"")], [(begin, 0)]
            self.add(path, inode)
            changed(path)
        elif name == "write":
            inode, offset, data = self.at(path), *rest
            old = inode.versions[-1][1]
            new = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
            inode.versions.append((begin, new))
        elif name == "truncate":
            inode = self.at(path)
            old = inode.versions[-1][1]
            inode.versions.append((begin, old[: rest[0]].ljust(rest[0], b"\0")))
        elif name in ("unlink", "rmdir"):
            changed(path)
            del self.tree[path]
        elif name == "rename":
            if self.at(path).kind != "d":
                changed(path)
            self.move({path: rest[0]})
        elif name == "exchange":
            # XFS changes the directories alone, also where a directory is exchanged with a whiteout.
            self.move({path: rest[0], rest[0]: path})
        elif name == "link":
            self.tree[rest[0]] = self.tree[path]
            changed(path)
        elif name == "chmod":
            self.at(path).mode = rest[0]
            changed(path)
        elif name == "setxattr":
            self.at(path).attribute = rest[0]
            changed(path)
        elif name == "fsync":
            inode = self.at(path)
            durable = max(0, inode.changed)
            if inode.kind == "f":
                inode.synced.append((end, len(inode.versions) - 1))
        if name in ("create", "mkdir", "symlink", "unlink", "rmdir", "rename", "exchange"):
            changed(os.path.dirname(path))
        if name in ("rename", "exchange", "link"):
            changed(os.path.dirname(rest[0]))
        self.steps.append(Step(operation, begin, end, durable, self.snapshot()))

    def move(self, moves):
        tree = {}
        gone = set(moves.values()) - set(moves)
        for path, number in self.tree.items():
            for source, target in moves.items():
                if path == source or path.startswith(source + "/"):
                    tree[target + path[len(source) :]] = number
                    break
            else:
                if path not in gone:
                    tree.setdefault(path, number)
        self.tree = tree

    def after_kill(self, pending):
        """(what is told of it, model) of each tree that a killed daemon may leave."""
        allowed = [("all that was acknowledged", self)]
        if pending is not None:
            other = copy.deepcopy(self)
            other.apply(pending)
            allowed.append((f"also {brief(pending)}", other))
        return allowed


def scan(root):
    """The tree below `root`: {path: (kind, mode, attribute, target or content)}."""
    found = {}
    for directory, names, files in os.walk(root, onerror=fail):
        for name in names + files:
            whole = os.path.join(directory, name)
            path = os.path.relpath(whole, root)
            st = os.lstat(whole)
            if stat.S_ISLNK(st.st_mode):
                found[path] = ("l", 0o777, b"", os.readlink(whole))
                continue
            try:
                attribute = os.getxattr(whole, ATTRIBUTE, follow_symlinks=False)
            except OSError:
                attribute = b""
            mode = stat.S_IMODE(st.st_mode)
            if stat.S_ISDIR(st.st_mode):
                found[path] = ("d", mode, attribute, None)
            elif stat.S_ISREG(st.st_mode):
                with open(whole, "rb") as file:
                    found[path] = ("f", mode, attribute, file.read())
            else:
                found[path] = ("?", mode, attribute, None)
        names[:] = [n for n in names if not os.path.islink(os.path.join(directory, n))]
    return found


def fail(error):
    raise error


def brief(operation):
    """An operation without what it writes."""
    return " ".join(f"{len(part)} bytes" if isinstance(part, bytes) else str(part) for part in operation)


def mixes(content, versions, older=()):
    """Whether each block of a content is that of one of the versions or a mixture of them: what is in memory can be changed
    while it is written. Zeros may stand for what was not written behind the end of the first version, which was on the
    device, and for what was cut off behind that of any. `older`: versions before the first; what they had behind its end can
    be there again."""
    if content in versions:
        return True
    if len(content) > max(len(v) for v in versions):
        return False
    if len(content) < min(len(v) for v in versions):
        return False
    for at in range(0, len(content), BLOCK):
        block = content[at : at + BLOCK]
        if all(version[at : at + BLOCK][: len(block)].ljust(len(block), b"\0") != block for version in versions):
            if not from_versions(block, at, versions, older):
                return False
    return True


def from_versions(block, at, versions, older):
    """Whether each byte is that of one of the versions, or of what may be there instead."""
    safe = len(versions[0])
    return all(
        any(v[n] == byte if n < len(v) else byte == 0 for v in versions)
        or (n >= safe and (byte == 0 or any(v[n : n + 1] == bytes([byte]) for v in older)))
        for n, byte in enumerate(block, at)
    )


def differences(found, snapshot, versions_of):
    """How a tree differs from what it should be."""
    return [how for path in sorted(set(found) | set(snapshot)) if (how := differs(path, found, snapshot, versions_of))]


def differs(path, found, snapshot, versions_of):
    if path not in found:
        return f"{path} is missing"
    if path not in snapshot:
        return f"{path} should not be there"
    is_, want = found[path], snapshot[path]
    if is_[:3] != want[:3]:
        return f"{path} is {is_[:3]}, not {want[:3]}"
    if is_[0] == "l" and is_[3] != want[3]:
        return f"{path} points to {is_[3]}, not {want[3]}"
    if is_[0] == "f" and not mixes(is_[3], *(known := versions_of(want[3]))):
        versions = known[0]
        at = next((n for n, byte in enumerate(is_[3]) if all(v[n : n + 1] != bytes([byte]) for v in versions)), len(is_[3]))
        return f"{path} has {len(is_[3])} bytes that are none of its versions ({[len(v) for v in versions]} bytes), from {at} on: {is_[3][at : at + 8]}"
    return ""


def check_kill(model, pending, found):
    """The model that a tree after a kill is the state of, or why there is none."""
    reasons = []
    for told, allowed in model.after_kill(pending):
        current = lambda number, model=allowed: ([model.inodes[number].versions[-1][1]],)  # noqa: E731
        wrong = differences(found, allowed.snapshot(), current)
        if not wrong:
            return allowed, ""
        reasons.append(f"with {told}: {', '.join(wrong[:5])}")
    return None, "; ".join(reasons)


def check_power_loss(model, cut, found, stale=False):
    """Whether a tree is allowed when the power was lost after `cut` entries of the record: "" or why not."""
    steps = model.steps
    done = [s for s in steps if s.end <= cut]
    first = max((s.durable for s in done), default=0)
    synced = next(f" ({brief(s.operation)}, done at {s.end})" for s in done if s.durable == first)
    last = max((n for n, s in enumerate(steps) if s.begin <= cut), default=0)

    def versions(number):
        inode = model.inodes[number]
        base = max((version for end, version in inode.synced if end <= cut), default=0)
        later = [v for begin, v in inode.versions[base + 1 :] if begin <= cut]
        return [inode.versions[base][1], *later], [v for _, v in inode.versions[:base]] if stale else []

    trees = []
    for number in range(first, last + 1):
        wrong = differences(found, steps[number].snapshot, versions)
        if not wrong:
            return ""
        trees.append((len(wrong), number, ", ".join(wrong[:5])))
    _, number, wrong = min(trees)
    near = "; ".join(f"{n} {brief(s.operation)}" for n, s in enumerate(steps[number - 3 : number + 4], number - 3))
    return f"like none of the trees after operations {first}{synced} to {last}; after {number}: {wrong} ({near})"
