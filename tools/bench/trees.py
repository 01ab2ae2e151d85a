"""The trees that the workloads run on. The same sizes give the same trees on every machine."""

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass

# Raised when the trees change, so that old ones are made anew.
FORM = 4
MIB = 1 << 20
LAYERS = (4, 64, 200)
MOUNT_LAYERS = (1, 64, 500)
# One file in so many is there in a deeper layer too, with other content.
HIDDEN = 20
WORDS = "layer upper lower merged whiteout opaque union name inode copy lookup mount entry node file".split()
# What a web service may import.
IMPORTS = (
    "argparse asyncio base64 bz2 calendar cgi cmd code codecs collections concurrent.futures configparser contextlib "
    "copy csv ctypes dataclasses datetime decimal difflib dis doctest email.mime.multipart email.mime.text "
    "email.parser email.policy enum filecmp fileinput fractions ftplib functools getpass gettext glob graphlib gzip "
    "hashlib heapq hmac html.parser http.client http.cookiejar http.server imaplib importlib.metadata inspect ipaddress json locale "
    "logging.config logging.handlers lzma mailbox mimetypes multiprocessing.pool netrc numbers optparse pathlib pdb "
    "pickle pickletools pkgutil platform plistlib poplib pprint profile pydoc queue quopri random re sched secrets "
    "selectors shelve shlex shutil smtplib socketserver sqlite3 ssl statistics string stringprep subprocess sysconfig "
    "tarfile tempfile textwrap threading timeit tokenize trace traceback tracemalloc types typing unittest.mock "
    "urllib.request uuid warnings wave weakref webbrowser wsgiref.simple_server xml.dom.minidom xml.etree.ElementTree "
    "xml.sax xmlrpc.client zipapp zipfile zoneinfo"
).split()


@dataclass(frozen=True)
class Sizes:
    tree: int = 20_000
    subset: int = 2_000
    sources: int = 200
    big: int = 1024 * MIB


QUICK = Sizes(tree=4_000, subset=600, sources=24, big=256 * MIB)


class Stack:
    """Lowers, topmost first, and a plain directory with the same merged tree."""

    def __init__(self, top, lowers):
        self.merged = top / "merged"
        self.lowers = [top / f"l{i}" for i in range(lowers)]

    def make(self, paths):
        """Makes the roots and gives a function that tells in which layer to put a path."""
        for path in [*self.lowers, self.merged]:
            path.mkdir(parents=True, exist_ok=True)
        # By the order of the paths, not by hash(): the same on every run.
        layer_of = {p: random.Random(i).randrange(len(self.lowers)) for i, p in enumerate(paths)}
        return layer_of.__getitem__


class Trees:
    """All trees below one directory."""

    def __init__(self, top, sizes):
        self.top = top
        self.sizes = sizes
        self.merged = top / "merged"
        self.stacks = {f"tree-{n}": Stack(top / f"tree-{n}", n) for n in LAYERS}
        for stack in self.stacks.values():
            stack.merged = self.merged
        self.stacks |= {f"mount-{n}": Stack(top / f"mount-{n}", n) for n in MOUNT_LAYERS}
        self.stacks |= {name: Stack(top / name, 1) for name in ("big", "empty")}
        self.tar = top / "small.tar"
        self.repository = top / "repository.git"
        self.imports = top / "imports"
        self.names = top / "names"

    def make(self, say):
        """Makes what is not there in these sizes."""
        form = {"form": FORM, "python": sys.version, **asdict(self.sizes)}
        done = self.top / "form.json"
        if done.exists() and json.loads(done.read_text()) == form:
            return
        shutil.rmtree(self.top, ignore_errors=True)
        self.top.mkdir(parents=True)
        say("trees: sources")
        text = Text()
        files = {f"tree/{p}": text.some() for p in names(self.sizes.tree)}
        subset = {f"sub/{p}": text.some() for p in names(self.sizes.subset)}
        subset |= project(self.sizes.sources, text)
        self.names.write_text("".join(f"{p}\n" for p in files))
        (self.top / "layout").mkdir()
        python = python_library(self.top / "layout/py", self.imports)
        for layers in LAYERS:
            say(f"trees: {layers} layers")
            # What only some workloads use is in the smallest stack alone.
            more = subset if layers == LAYERS[0] else {}
            self.fill(self.stacks[f"tree-{layers}"], files | more, layers == LAYERS[0], text)
        spread(python, self.stacks[f"tree-{LAYERS[0]}"], self.merged / "py")
        for layers in MOUNT_LAYERS:
            stack = self.stacks[f"mount-{layers}"]
            for lower in [*stack.lowers, stack.merged]:
                write(lower / "dir/file", b"content\n")
        write(self.stacks["empty"].lowers[0] / "dir/file", b"content\n")
        write(self.stacks["empty"].merged / "dir/file", b"content\n")
        say("trees: a large file")
        self.large(self.stacks["big"])
        say("trees: an archive and a repository")
        subprocess.run(["tar", "-cf", self.tar, "-C", self.merged / "sub", "."], check=True)
        self.make_repository()
        shutil.rmtree(self.top / "layout")
        done.write_text(json.dumps(form))

    def fill(self, stack, files, with_merged, text):
        layer_of = stack.make(list(files))
        for i, (path, content) in enumerate(files.items()):
            layer = layer_of(path)
            write(stack.lowers[layer] / path, content)
            if i % HIDDEN == 0 and layer + 1 < len(stack.lowers):
                write(stack.lowers[layer + 1] / path, text.some())
            if with_merged:
                write(self.merged / path, content)

    def large(self, stack):
        for top in (stack.lowers[0], stack.merged):
            top.mkdir(parents=True)
            chunk = random.Random(1).randbytes(MIB)
            with open(top / "big", "wb") as file:
                for i in range(self.sizes.big // MIB):
                    file.write(i.to_bytes(8, "little") + chunk[8:])

    def make_repository(self):
        """A bare repository with two branches that differ in one file of ten."""
        work = self.top / "layout/repository"
        shutil.copytree(self.merged / "sub", work)
        git(work, "init", "-q", "-b", "main")
        git(work, "add", "-A")
        git(work, "commit", "-qm", "First")
        git(work, "checkout", "-q", "-b", "other")
        for i, path in enumerate(sorted(p for p in work.rglob("*.c") if ".git" not in p.parts)):
            if i % 20 == 0:
                path.unlink()
            elif i % 10 == 0:
                path.write_bytes(path.read_bytes() + b"changed\n")
        git(work, "add", "-A")
        git(work, "commit", "-qm", "Second")
        git(work, "checkout", "-q", "main")
        git(self.top, "clone", "-q", "--bare", work, self.repository)


class Text:
    """Text of the sizes that source files have: most of 1 to 4 KiB, few large."""

    def __init__(self):
        self.random = random.Random(2)
        self.block = " ".join(self.random.choice(WORDS) for _ in range(60_000)).encode()

    def some(self):
        size = min(int(self.random.lognormvariate(7.6, 1.0)), 65_536)
        begin = self.random.randrange(len(self.block) - size)
        return self.block[begin : begin + size] + b"\n"


def names(count):
    """Paths two directories deep, some twenty files in each."""
    wide = max(2, round((count / 20) ** 0.5))
    for i in range(count):
        outer, inner = i % wide, i // wide % wide
        yield f"d{outer:03}/e{inner:03}/file{i:05}.c"


def project(count, text):
    """A C project: each source includes the common header and three of forty others."""
    pick = random.Random(3)
    common = "".join(f"#include <{h}.h>\n" for h in ("errno", "stdio", "stdlib", "string", "sys/stat", "unistd"))
    files = {"src/include/common.h": common.encode()}
    for i in range(40):
        lines = [f"static inline int h{i}_{k}(int x) {{ return x * {k + 3} + {i}; }}\n" for k in range(60)]
        files[f"src/include/h{i}.h"] = "".join(lines).encode()
    for i in range(count):
        used = pick.sample(range(40), 3)
        lines = ['#include "common.h"\n', *(f'#include "h{h}.h"\n' for h in used)]
        for k in range(12):
            body = " + ".join(f"h{h}_{pick.randrange(60)}(x)" for h in used)
            lines.append(f"int f{i}_{k}(int x) {{ return {body}; }}\n")
        lines.append(f"/* {text.some()[:500].decode()} */\n")
        files[f"src/part{i % 10}/f{i}.c"] = "".join(lines).encode()
    files["src/main.c"] = b"int f0_0(int);\nint main(void) { return f0_0(1) == 0; }\n"
    make = "OBJECTS := $(patsubst %.c,%.o,main.c $(wildcard part*/*.c))\n"
    make += "program: $(OBJECTS)\n\t$(CC) -o $@ $^\n%.o: %.c\n\t$(CC) -O0 -Iinclude -c -o $@ $<\n"
    files["src/Makefile"] = make.encode()
    return files


def python_library(top, imports):
    """A compiled copy of the running Python's library, and a program that imports much of it."""
    skip = ("test", "tests", "site-packages", "idlelib", "tkinter", "lib2to3", "ensurepip", "lib-dynload", "turtledemo")
    skip += ("__pycache__", "config-*", "distutils")
    shutil.copytree(sysconfig.get_path("stdlib"), top, ignore=shutil.ignore_patterns(*skip), symlinks=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", top], check=True)
    works = []
    for name in IMPORTS:
        if not subprocess.run(
            [sys.executable, "-c", f"import {name}"], check=False, stderr=subprocess.DEVNULL
        ).returncode:
            works.append(name)
    imports.write_text(f"import sys; sys.path.insert(0, 'py')\nimport {', '.join(works)}\n")
    return top


def spread(source, stack, merged):
    """Puts each file of a directory in one of the layers, and a copy of all in the merged tree."""
    shutil.copytree(source, merged, symlinks=True)
    paths = sorted(p.relative_to(source) for p in source.rglob("*") if not p.is_dir())
    layer_of = stack.make(paths)
    for path in paths:
        target = stack.lowers[layer_of(path)] / "py" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / path, target, follow_symlinks=False)


def write(path, content):
    try:
        path.write_bytes(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)


def git_environment():
    """Nothing of the user's own settings, and no clean-up in the background."""
    settings = {"gc.auto": "0", "maintenance.auto": "false", "user.name": "bench", "user.email": "bench@localhost"}
    settings["safe.directory"] = "*"
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    env["GIT_CONFIG_COUNT"] = str(len(settings))
    for i, (key, value) in enumerate(settings.items()):
        env |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    return env


def git(directory, *args):
    subprocess.run(["git", "-C", directory, *args], check=True, env=git_environment())
