# shellcheck shell=bash
# Sourced by each case: the engines' configuration, the image to begin with, and what cases check with. A case runs in
# a shell of its own, as the user it is for, with these variables:
#
#   DIR      the directory of this program and user: stores, configuration, `work` for the cases
#   SHARED   what all share: the base image as a tar archive, expected manifests
#   PROGRAM  what mounts for the engines; `overlayfs` for the kernel
#   WHO      root or user
set -euo pipefail

SCRIPTS=$(dirname "${BASH_SOURCE[0]}")
export HOME=$DIR/home XDG_RUNTIME_DIR=$DIR/xdg TMPDIR=$DIR/tmp
export CONTAINERS_STORAGE_CONF=$DIR/storage.conf CONTAINERS_CONF=$DIR/containers.conf
export BUILDAH_ISOLATION=oci
W=$DIR/work

# A command that hangs must not hang the run.
podman() {
    timeout --kill-after=10 90 podman "$@"
}

buildah() {
    timeout --kill-after=10 90 buildah "$@"
}

say() {
    printf '%s\n' "$*"
}

fail() {
    say "FAILED: $*"
    exit 1
}

# The case cannot be run; the last line says why.
skip() {
    say "SKIP: $*"
    exit 77
}

# same WHAT EXPECTED ACTUAL
same() {
    [[ $2 == "$3" ]] && return
    say "expected $1:"
    say "$2"
    say "found:"
    say "$3"
    fail "$1 differs"
}

has() {
    grep -qxF -- "$2" <<<"$3" || {
        say "$3"
        fail "$1: no line '$2'"
    }
}

has_not() {
    ! grep -qxF -- "$2" <<<"$3" || {
        say "$3"
        fail "$1: line '$2'"
    }
}

# The image that most cases begin with.
need_base() {
    podman image exists localhost/base && return
    podman import -q "$SHARED/base.tar" localhost/base >/dev/null
}

# The image that the Containerfile makes; its building is a case of its own.
need_built() {
    podman image exists localhost/built && return
    build built
}

build() {
    local name=$1
    shift
    need_base
    make_context
    podman build -q --no-cache --network none -t "localhost/$name" "$@" "$W/context" >/dev/null
}

make_context() {
    rm -rf "$W/context"
    mkdir -p "$W/context/files"
    echo copied >"$W/context/files/a"
    ln "$W/context/files/a" "$W/context/files/b"
    ln -s a "$W/context/files/c"
    chmod 640 "$W/context/files/a"
    cp "$SCRIPTS/Containerfile" "$W/context/Containerfile"
}

# Every object of an image, with type, mode, owner, size, links and content.
manifest_of() {
    podman run --rm -i "$@" sh -s <"$SCRIPTS/manifest.sh"
}

like_reference() {
    manifest_of "$2" >"$W/manifest" || fail "cannot look into $2"
    diff -u "$SHARED/$1.manifest" "$W/manifest" || fail "the image is not what the same steps make of a plain directory"
}

# That an image is still what was built, which the cases that build compare with a plain directory.
like_built() {
    [[ -s $W/built ]] || manifest_of localhost/built >"$W/built" || fail "cannot look into localhost/built"
    manifest_of "$@" >"$W/manifest" || fail "cannot look into it"
    diff -u "$W/built" "$W/manifest" || fail "it is not what was built"
}

# has_one WHAT TEXT LINE...: engines tell of some changes in one way or another.
has_one() {
    local what=$1 text=$2 line
    shift 2
    for line in "$@"; do
        ! grep -qxF -- "$line" <<<"$text" || return 0
    done
    say "$text"
    fail "$what: none of the lines '$*'"
}
