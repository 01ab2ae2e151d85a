"""What is measured. Each workload is a step of a scenario; the steps of a scenario share one mount."""

from dataclasses import dataclass, field, replace

from .trees import LAYERS, MIB, MOUNT_LAYERS


@dataclass
class Step:
    """One workload. Shell commands get these variables: M, the root of the tree; T, the directory of the
    trees; L, the first lower; P, the probe; PY, Python; N, the number of CPUs."""

    label: str
    # A shell command, or the arguments of fio when `by` is "fio".
    command: str | list
    # A fresh mount and empty caches before it.
    cold: bool = False
    # Runs before it in the same place and is not measured: what makes it hot.
    warm: str = ""
    # The working directory below the root.
    cwd: str = "."
    # Runs before it and is not measured.
    before: str = ""
    # Where the measured time comes from: the clock, the probe's or fio's own measurement.
    by: str = "clock"
    # Exit codes that are no failure.
    codes: tuple = (0,)
    # Part of the chart.
    chart: bool = False
    # Part of a quick run.
    quick: bool = True
    # What earlier steps have written is written back before it.
    settle: bool = True


@dataclass
class Scenario:
    stack: str
    steps: list = field(default_factory=list)
    # Names in the tree that the steps change: a plain directory needs copies of them.
    changes: tuple = ()
    # Names in the layers, or beside them, that the steps read and that are in memory before.
    sources: tuple = ()
    # The steps write, so that they need a tree of their own.
    writes: bool = False
    # The mount itself is measured.
    mounts: bool = False

    def of(self, backend):
        """What of it runs on a backend."""
        if not backend.chart_only or self.mounts:
            return self
        if self.stack in {f"tree-{n}" for n in LAYERS[1:]}:
            return replace(self, steps=[])
        steps = list(self.steps)
        if self.writes:
            # Later steps build on earlier ones.
            while steps and not steps[-1].chart:
                steps.pop()
        else:
            steps = [step for step in steps if step.chart]
        return replace(self, steps=steps)


def reads(layers, times, thorough):
    """Walking and reading the tree over some layers."""
    suffix = "" if layers == LAYERS[0] else f", {layers} layers"
    plain = layers == LAYERS[0]

    def hot(label, what, **options):
        probe = f'"$P" {what} "$T/names"'
        return Step(label, f"{probe} {times}", warm=f"{probe} 1", by="probe", **options)

    steps = [
        Step(f"find cold{suffix}", "find .", cold=True, chart=True),
        Step(f"find hot{suffix}", "find . . . . .", warm="find .", chart=True),
        *(
            [
                Step("ls -lR cold", "ls -lR .", cold=True, quick=False),
                Step("ls -lR hot", "ls -lR .", warm="ls -lR .", quick=False),
            ]
            if plain
            else []
        ),
        Step(f"missing name cold{suffix}", '"$P" missing "$T/names" 1', cold=True, by="probe", quick=layers == LAYERS[1]),
        hot(f"missing name hot{suffix}", "missing", chart=True),
    ]
    if plain:
        steps.append(hot("stat hot", "stat", chart=True))
    for step in steps:
        step.cwd = "tree" if "names" not in step.command else "."
    if plain:
        grep = "grep -r xyzzy ."
        steps += [
            hot("open+read+close hot", "open", chart=True),
            Step("grep -r cold", grep, cold=True, cwd="tree", codes=(1,), chart=True),
            Step("grep -r hot", grep, warm=f"{grep} || true", cwd="tree", codes=(1,), chart=True),
        ]
        python = '"$PY" -S "$T/imports"'
        steps += [
            Step("python imports cold", python, cold=True, chart=True),
            Step("python imports hot", python, warm=python, chart=True),
        ]
    if layers == LAYERS[-1] and not thorough:
        return Scenario("", [])
    if thorough and plain:
        steps.append(Step("open+read+close cold", '"$P" open "$T/names" 1', cold=True, by="probe"))
    return Scenario(f"tree-{layers}", steps)


def small_files():
    untar = 'tar -xf "$T/small.tar" -C'
    two = f'mkdir one two; {untar} one & {untar} two & wait'
    return [
        Scenario(
            "empty",
            [
                Step("untar", f'mkdir tar && {untar} tar', chart=True),
                Step("cp -a, upper", "cp -a tar copy"),
                Step("rm -rf, upper", "rm -rf tar copy", chart=True),
                Step("untar, 2 in parallel", two, quick=False),
            ],
            writes=True,
            sources=("small.tar",),
        ),
        Scenario(
            f"tree-{LAYERS[0]}",
            [
                Step("cp -a, lower to upper", "cp -a sub copy", chart=True),
                Step("rm -rf, lower", "rm -rf sub", chart=True),
            ],
            changes=("sub",),
            sources=("sub",),
        ),
        Scenario(
            f"tree-{LAYERS[0]}",
            [Step("chmod -R, lower", "chmod -R g+w sub", chart=True)],
            changes=("sub",),
            sources=("sub",),
        ),
    ]


def git():
    change = "git ls-files | awk 'NR % 10 == 0' | while read -r f; do echo changed >>\"$f\"; done"
    return Scenario(
        "empty",
        [
            Step("git clone", 'git clone -q "$T/repository.git" clone', chart=True),
            Step("git status hot", "git status -s", cwd="clone", warm="git status -s"),
            Step("git add", "git add -A", cwd="clone", before=f"cd clone && {change}"),
            Step("git commit", "git commit -qm Change", cwd="clone"),
            Step("git checkout", "git checkout -q origin/other", cwd="clone", chart=True),
        ],
        writes=True,
        sources=("repository.git",),
    )


def build():
    return Scenario(
        f"tree-{LAYERS[0]}",
        [Step("C compile", 'make -s -j"$N"', cwd="src", chart=True)],
        changes=("src",),
        sources=("src",),
    )


def mmap(kind, block, size, amount):
    return fio(kind, block, size, amount, engine="mmap")


def fio(kind, block, size, amount, jobs=1, engine="psync", more=()):
    """Arguments of fio for a file `big`. `size`: of the file, in bytes; `amount`: what each job does."""
    return [
        "--name=job",
        "--filename=big",
        f"--rw={kind}",
        f"--bs={block}",
        f"--size={size}",
        f"--io_size={amount}",
        f"--numjobs={jobs}",
        f"--ioengine={engine}",
        *("--group_reporting", "--thread", "--invalidate=0", "--fadvise_hint=0", "--fallocate=none", "--randrepeat=1"),
        *("--allow_file_create=1", "--output-format=json", *more),
    ]


def data(big, quick):
    """Reads of a large lower file, writes to and reads of one in the upper."""
    part = 128 * MIB if quick else 256 * MIB
    little = 32 * MIB if quick else 64 * MIB
    upper = big // 2 if quick else big // 4

    def step(label, args, **options):
        return Step(f"fio {label}", args, by="fio", **options)

    warm = "cat big >/dev/null"
    lower = [
        step("read 1M seq, lower cold", fio("read", "1M", big, big), cold=True, chart=True),
        step("read 1M seq, lower hot", fio("read", "1M", big, big), before=warm, chart=True),
        step("read 4k seq, lower hot", fio("read", "4k", big, part), before=warm, quick=False),
        step("read 4k random, lower hot", fio("randread", "4k", big, part), before=warm, chart=True),
        step("read 1M random, lower hot", fio("randread", "1M", big, big), before=warm, quick=False),
        step("read 4k random, lower hot, 2 jobs", fio("randread", "4k", big, part, 2), before=warm, quick=False),
        step("read 1M seq, lower hot, 2 jobs", fio("read", "1M", big, big, 2), before=warm, quick=False),
        step("read 4k random mmap, lower hot", mmap("randread", "4k", big, part), before=warm, chart=True),
        step("read 1M seq mmap, lower hot", mmap("read", "1M", big, big), before=warm, quick=False),
        step("read 4k random, lower cold", fio("randread", "4k", big, little // 4), cold=True, quick=False),
    ]
    fill = f"rm -f big; dd if=/dev/zero of=big bs=1M count={upper // MIB} status=none; sync -f ."
    writes = [
        step("write 1M seq, new file", fio("write", "1M", upper, upper), before="rm -f big; sync -f .", chart=True),
        step("write 4k seq, new file", fio("write", "4k", little, little), before="rm -f big; sync -f .", quick=False),
        step("write 4k random", fio("randwrite", "4k", upper, little), before=fill, chart=True),
        step("write 1M random", fio("randwrite", "1M", upper, upper), quick=False),
        step("write 1M seq", fio("write", "1M", upper, upper), before="sync -f .", quick=False),
        step("write 4k random, 2 jobs", fio("randwrite", "4k", upper, little, 2), before="sync -f ."),
        step("write 1M seq, 2 jobs", fio("write", "1M", upper, upper, 2), before="sync -f .", quick=False),
        step("write 4k random mmap", mmap("randwrite", "4k", upper, little), before="sync -f .", quick=False),
        step("write 1M seq mmap", mmap("write", "1M", upper, upper), before="sync -f .", quick=False),
        step(
            "write 4k random, fsync each",
            fio("randwrite", "4k", upper, 4096 * (50 if quick else 300), more=["--fsync=1"]),
            before="sync -f .",
            chart=True,
        ),
        step("read and write 4k random", fio("randrw", "4k", upper, little), before="sync -f .", quick=False),
        step("read 4k random, upper hot", fio("randread", "4k", upper, part), before=warm, chart=True),
        step("read 1M seq, upper hot", fio("read", "1M", upper, upper), quick=False),
        step("read 1M seq, upper cold", fio("read", "1M", upper, upper), cold=True, quick=False),
    ]
    # The lower's pages are in memory, so that all copy from there.
    warm = 'cat "$L/big" >/dev/null'
    append = Step("append to a large lower file", "printf x >>big", before=warm, chart=True)
    chmod = Step("chmod of a large lower file", "chmod 600 big", before=warm, chart=True)
    chown = Step("chown of a large lower file", "chown 1:1 big", before=warm, quick=False)
    return [
        Scenario("big", lower),
        Scenario("empty", writes, writes=True),
        Scenario("big", [append], changes=("big",)),
        Scenario("big", [chmod], changes=("big",)),
        Scenario("big", [chown], changes=("big",)),
    ]


def parallel(count, churn):
    greps = "for i in 0 1 2 3; do grep -r xyzzy d*$i d*$((i + 4)) & done; wait"
    finds = "for i in 1 2 3 4; do find . & done; wait"
    mix = (
        'find tree >/dev/null & grep -r xyzzy tree/d000 tree/d001 & tar -xf "$T/small.tar" -C new & '
        f"dd if=/dev/zero of=new/zero bs=1M count={count} status=none & "
        '"$P" churn new 500 1 & wait'
    )
    return [
        Scenario(
            f"tree-{LAYERS[0]}",
            [
                Step("find cold, 4 in parallel", finds, cold=True, cwd="tree", quick=False),
                Step("grep -r hot, 4 in parallel", greps, warm=greps, cwd="tree", chart=True),
            ],
        ),
        Scenario(
            "empty",
            [
                Step("create, rename, unlink", f'mkdir d; "$P" churn d {churn} 1', by="probe", chart=True),
                Step("create, rename, unlink, 4 in parallel", f'"$P" churn d {churn // 2} 4', by="probe"),
                Step(
                    "create, rename, unlink, 4 directories",
                    f'mkdir 1 2 3 4; for i in 1 2 3 4; do "$P" churn $i {churn // 2} 1 & done; wait',
                    quick=False,
                ),
            ],
            writes=True,
        ),
        Scenario(
            f"tree-{LAYERS[0]}",
            [Step("find, grep, untar, write at once", mix, before="mkdir new", chart=True)],
            changes=("tree",),
            sources=("tree", "small.tar"),
        ),
    ]


def mounts():
    return [
        Scenario(f"mount-{n}", [Step(f"mount, {n} layer{'s' * (n > 1)}", "", chart=n > 1)], mounts=True)
        for n in MOUNT_LAYERS
    ]


def all_scenarios(sizes, quick, wanted):
    """Those with workloads that are wanted, in the order in which they run. `wanted`: by the name."""
    times = max(1, (12_000 if quick else 40_000) // sizes.tree)
    scenarios = [
        *(reads(layers, times, not quick) for layers in LAYERS),
        *small_files(),
        git(),
        build(),
        *data(sizes.big, quick),
        *parallel(64 if quick else 128, 500 if quick else 1_500),
        *mounts(),
    ]
    for scenario in scenarios:
        scenario.steps = [step for step in scenario.steps if step.quick or not quick]
        if scenario.writes:
            # Later steps build on earlier ones.
            while scenario.steps and not wanted(scenario.steps[-1].label):
                scenario.steps.pop()
        else:
            scenario.steps = [step for step in scenario.steps if wanted(step.label)]
    return [scenario for scenario in scenarios if scenario.steps]
