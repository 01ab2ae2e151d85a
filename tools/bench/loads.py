"""Mixed load for a mount, each kind in a process of its own: it works in rounds, looks at what it should find, and leaves
nothing behind but what lies in the layers. A round that finds something wrong ends with an exception."""

import hashlib
import itertools
import os
import random
import shutil
import subprocess
from pathlib import Path

# Seconds for one command.
LIMIT = 300


class Wrong(Exception):
    """What is in the mount is not what was put there."""


def run(*argv, cwd=None, env=None):
    done = subprocess.run(
        [os.fspath(a) for a in argv],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        raise Wrong(f"{Path(argv[0]).name} ended with {done.returncode}: {' | '.join(said[-3:])[:300]}")
    return done.stdout.decode(errors="replace")


def expect(found, wanted, what):
    if found != wanted:
        raise Wrong(f"{what}: {found!r} instead of {wanted!r}")


def digest_of_tree(top):
    """One hash over names and contents."""
    whole = hashlib.sha256()
    for path, dirs, files in os.walk(top):
        dirs.sort()
        for name in sorted(files):
            whole.update(os.fsencode(name) + b"\0")
            whole.update((Path(path) / name).read_bytes())
    return whole.hexdigest()


def git(mnt, own, rng):
    """init, commits, branches, checkout, repack, fsck."""
    env = dict(os.environ, HOME=os.fspath(own), GIT_CONFIG_NOSYSTEM="1", GIT_AUTHOR_NAME="soak", GIT_AUTHOR_EMAIL="s@localhost")
    env.update(GIT_COMMITTER_NAME="soak", GIT_COMMITTER_EMAIL="s@localhost")
    work = own / "repository"

    def call(*args):
        return run("git", "-c", "gc.auto=0", "-c", "init.defaultBranch=first", *args, cwd=work, env=env)

    work.mkdir()
    call("init", "-q")
    for commit in range(4):
        for i in range(60):
            path = work / f"d{i % 6}" / f"f{i}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{commit} {i} {rng.random()}\n" * rng.randint(1, 200))
        call("add", "-A")
        call("commit", "-q", "-m", f"number {commit}")
    call("checkout", "-q", "-b", "second", "HEAD~2")
    call("checkout", "-q", "first")
    call("repack", "-q", "-a", "-d")
    call("fsck", "--full")
    expect(call("status", "--porcelain"), "", "git status")
    shutil.rmtree(work)


def tar(mnt, own, rng):
    """A lower tree packed, unpacked beside it and compared."""
    source = mnt / "tree" / f"t{rng.randrange(4)}"
    archive, copy = own / "archive.tar", own / "copy"
    copy.mkdir()
    run("tar", "-C", source, "-cf", archive, ".")
    run("tar", "-C", copy, "-xf", archive)
    expect(digest_of_tree(copy), digest_of_tree(source), "unpacked tree")
    run("rm", "-rf", copy, archive)


def compile(mnt, own, rng):
    """Some C files compiled one by one, linked and run."""
    work = own / "build"
    work.mkdir()
    count = 12
    for i in range(count):
        body = "\n".join(f"static int g{k}(int x) {{ return x * {k} + {i}; }}" for k in range(40))
        calls = " + ".join(f"g{k}(x)" for k in range(40))
        (work / f"f{i}.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{body}\nint f{i}(int x) {{ return {calls}; }}\n")
    main = "".join(f"int f{i}(int);" for i in range(count))
    total = " + ".join(f"f{i}(1)" for i in range(count))
    (work / "main.c").write_text(f'#include <stdio.h>\n{main}\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n')
    names = [f"f{i}" for i in range(count)] + ["main"]
    for name in names:
        run("gcc", "-O1", "-c", f"{name}.c", "-o", f"{name}.o", cwd=work)
    run("ar", "rcs", "libf.a", *[f"{n}.o" for n in names[:-1]], cwd=work)
    run("gcc", "main.o", "libf.a", "-o", "program", cwd=work)
    wanted = sum(sum(k + i for k in range(40)) for i in range(count))
    expect(run(work / "program").strip(), str(wanted), "program")
    shutil.rmtree(work)


def fio(mnt, own, rng):
    """Random and sequential I/O with verification, mapped too."""
    engine = rng.choice(["psync", "mmap"])
    run(
        "fio", "--name=soak", f"--directory={own}", "--size=16m", f"--ioengine={engine}", "--rw=randwrite", "--bs=4k",
        "--verify=crc32c", "--do_verify=1", "--numjobs=2", f"--randseed={rng.randrange(1 << 30)}", "--thread", "--minimal",
        cwd=own,
    )
    for path in own.iterdir():
        path.unlink()


def storm(mnt, own, rng):
    """Names made, renamed, linked and removed at random, and compared with what they should be."""
    names = {}
    for d in range(4):
        (own / f"d{d}").mkdir()
    for step in range(3000):
        name = f"d{rng.randrange(4)}/n{rng.randrange(150)}"
        path = own / name
        what = rng.randrange(6)
        if what < 2 or not names:
            content = f"{step}"
            if name in names:
                path.unlink()
            path.write_text(content)
            names[name] = content
        else:
            old = rng.choice(list(names))
            if what == 2:
                (own / old).unlink()
                del names[old]
            elif what == 3 and old != name and names.get(name) is not names[old]:
                os.rename(own / old, path)
                names[name] = names.pop(old)
            elif what == 4 and name not in names:
                os.link(own / old, path)
                names[name] = names[old]
            else:
                expect((own / old).read_text(), names[old], old)
    found = {f"d{d}/{name}": (own / f"d{d}" / name).read_text() for d in range(4) for name in os.listdir(own / f"d{d}")}
    expect(found, names, "names")
    for d in range(4):
        shutil.rmtree(own / f"d{d}")


def lowers(mnt, own, rng):
    """Lower files copied up by writes and attributes, whole directories renamed, removed and made again. The same names
    each time, so that the upper stays as large as it is."""
    top = mnt / "changed" / own.name
    for d in range(8):
        directory = top / f"d{d}"
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        for i in range(40):
            (directory / f"f{i}").write_text(f"{d} {i}")
        os.rename(directory, top / "moving")
        os.rename(top / "moving", directory)
    for i in range(200):
        path = mnt / "other" / f"t{i % 4}" / f"d{i % 10}" / f"f{i % 50}"
        os.chmod(path, 0o600 if rng.random() < 0.5 else 0o644)
        with open(path, "r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(first)


def readers(mnt, own, rng):
    """Everything listed and read, by descriptors and by a mapping."""
    count = 0
    for path, _dirs, files in os.walk(mnt / "tree"):
        for name in files:
            with open(Path(path) / name, "rb") as file:
                count += len(file.read())
    if count == 0:
        raise Wrong("nothing to read in the lowers")
    run("find", mnt / "tree", "-newer", mnt / "tree" / "t0", "-size", "+1k")


class Containers:
    """Small mounts of their own over the same lowers, worked in and ended, as of containers that come and go."""

    def __init__(self, program, lowers_of):
        self.program, self.lowers_of = program, lowers_of

    def __call__(self, mnt, own, rng):
        # Its layers cannot lie in the mount that is watched: they lie beside it.
        top = mnt.parent / f"container-{own.name}"
        shutil.rmtree(top, ignore_errors=True)
        for name in ("upper", "work", "root"):
            (top / name).mkdir(parents=True)
        root = top / "root"
        lowers = ":".join(os.fspath(path) for path in self.lowers_of)
        options = f"lowerdir={lowers},upperdir={top}/upper,workdir={top}/work"
        run(self.program, "mount", "-o", options, root)
        try:
            for i in range(20):
                (root / f"new{i}").write_text("x" * 1000)
                with open(root / "tree" / "t1" / "d1" / f"f{i}", "ab") as file:
                    file.write(b"more")
            os.unlink(root / "tree" / "t2" / "d2" / "f3")
            shutil.copytree(root / "tree" / "t3" / "d3", root / "copied")
        finally:
            run(self.program, "umount", root)
        shutil.rmtree(top)


KINDS = {"git": git, "tar": tar, "compile": compile, "fio": fio, "storm": storm, "lowers": lowers, "readers": readers}


def make_lowers(top, count=4):
    """Lowers with `tree/tN/dN/fN`, each file in one of them, and the same in `other`, for whoever changes them."""
    found = []
    rng = random.Random(1)
    for layer in range(count):
        base = top / f"l{layer}"
        for tree, t, d in itertools.product(("tree", "other"), range(4), range(10)):
            directory = base / tree / f"t{t}" / f"d{d}"
            directory.mkdir(parents=True)
            for i in range(50):
                if i % count == layer:
                    (directory / f"f{i}").write_bytes(rng.randbytes(rng.randint(1, 8000)))
        found.append(base)
    return found
