# shellcheck shell=bash
# Programs at work in a container of a Debian image; each is checked for its result, and timed. Offline: what they
# install was fetched before.

need_debian() {
    [[ -e $SHARED/debian.tar ]] || skip "no Debian image has been made: network is needed for that"
    podman image exists localhost/debian && return
    timeout 150 podman import -q "$SHARED/debian.tar" localhost/debian >/dev/null
}

# Runs a script in a container and tells how long that took.
timed() {
    local script=$1 begin=$EPOCHREALTIME
    shift
    timeout --kill-after=10 150 podman run --name workload "$@" localhost/debian bash -euc "$script" >"$W/output" 2>&1 || {
        tail -n 20 "$W/output"
        fail "the workload has failed"
    }
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "NOTE: %.2f s\n", b - a }'
}

# Looks at the container afterwards, in a mount of its own.
afterwards() {
    podman commit -q workload localhost/workload >/dev/null
    podman rm workload >/dev/null
    podman run --rm localhost/workload bash -euc "$1"
    podman rmi localhost/workload >/dev/null
}

case_workload_apt() {
    need_debian
    timed 'export DEBIAN_FRONTEND=noninteractive
        apt-get -qy -o Dpkg::Use-Pty=0 --no-download --no-install-recommends install emacs-nox' -v "$SHARED/archives:/var/cache/apt/archives:O"
    same "packages that are not right" "" "$(afterwards 'dpkg --audit; dpkg --verify emacs-nox; test -s /usr/bin/emacs-nox -o -e /usr/bin/emacs')"
}

case_workload_pip() {
    need_debian
    timed 'python3 -m venv /venv; /venv/bin/pip -q install --no-index --find-links /wheels numpy django sympy' -v "$SHARED/wheels:/wheels:ro"
    same "what the packages work out" 6 "$(afterwards '/venv/bin/pip -q check; /venv/bin/python -c "import numpy, django, sympy; print(int(numpy.arange(4).sum()))"')"
}

case_workload_git() {
    need_debian
    timed 'git clone -q /source.git /work; cd /work; make -s -j2; ./program >/result; git status --porcelain --ignored=no | wc -l >/changed; git gc -q' \
        -v "$SHARED/source.git:/source.git:ro"
    same "the program's output and what git says" $'79800\n0' "$(afterwards 'cat /result /changed; git -C /work fsck --no-progress')"
}

case_workload_sqlite() {
    need_debian
    # shellcheck disable=SC2016 # The inner shell has the variables.
    timed '{ echo "PRAGMA journal_mode=wal; PRAGMA synchronous=full; CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT);"
        for i in $(seq 3000); do echo "INSERT INTO t (s) VALUES (hex(randomblob(400)));"; done
        echo "DELETE FROM t WHERE n % 3 = 0; VACUUM;"; } | sqlite3 /db >/dev/null'
    same "the database" $'ok\n2000' "$(afterwards 'sqlite3 /db "PRAGMA integrity_check; SELECT count(*) FROM t;"')"
}
