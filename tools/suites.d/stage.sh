# shellcheck shell=bash
# Sourced by the scripts that run a suite: layers on the disk filesystem, a mount of them that ends with the
# script, and the suites' programs.
#
#   BACKEND   unionfs; or overlayfs (the kernel's) or ext4 (the layers' own filesystem) to compare with
#   OPTIONS   mount options of unionfs, separated by commas
#   UNIONFS   the program under test; built when not set

BACKEND=unionfs
OPTIONS=
TOOLS=target/tools
STAGE=
MNT=
RUNNING=

say() {
    printf '%s\n' "$*"
}

die() {
    say "FAILED: $*" >&2
    exit 1
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

# Runs a command and ends it after a time; what ignores that for 20 s is killed. In the background, so that the
# traps serve a signal to the script at once.
within() {
    local status=0
    timeout --kill-after=20 "$@" &
    RUNNING=$!
    wait "$RUNNING" || status=$?
    RUNNING=
    return "$status"
}

need_root() {
    [[ $EUID -eq 0 ]] || die "mounting and changing users need root: run as root"
}

# need_package PACKAGE: installs it unless it is there.
need_package() {
    dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed && return
    say "installing $1"
    as_root apt-get -q update
    DEBIAN_FRONTEND=noninteractive as_root apt-get -qy -o Dpkg::Use-Pty=0 install --no-install-recommends "$1"
}

# need_crate NAME VERSION: installs that version of a program by cargo unless it is there.
need_crate() {
    [[ $("$TOOLS/bin/$1" --version 2>/dev/null) == *" $2" ]] && return
    say "installing $1 $2"
    within 900 cargo install --quiet --locked "$1" --version "=$2" --root "$TOOLS" --target-dir "$TOOLS/build"
}

need_unionfs() {
    [[ $BACKEND == unionfs ]] || return 0
    if [[ -z ${UNIONFS:-} ]]; then
        within 900 cargo build --quiet --locked --release
        UNIONFS=$PWD/target/release/unionfs
    fi
    [[ -e /dev/fuse ]] || die "/dev/fuse is missing: load the module fuse, or pass the device into the container"
}

# Empty layers: lower1 (the topmost) and lower2, upper, work. The mount point in $MNT lies elsewhere: suites bind
# sockets, whose paths have 107 bytes at most.
stage_begin() {
    [[ -z $STAGE ]] || stage_end
    mkdir -p target/stage
    STAGE=$(mktemp -d "$PWD/target/stage/XXXXXX")
    MNT=$(mktemp -d /tmp/uXXXXXX)
    chmod 755 "$STAGE" "$MNT"
    mkdir "$STAGE"/{lower1,lower2,upper,work,plain}
}

# Mounts the layers; for ext4, a plain directory with a copy of the lowers.
stage_mount() {
    case $BACKEND in
        unionfs)
            within 60 "$UNIONFS" mount ${OPTIONS:+-o "$OPTIONS"} --work "$STAGE/work" "$STAGE/lower1:$STAGE/lower2" \
                "$STAGE/upper" "$MNT"
            ;;
        overlayfs)
            mount -t overlay unionfs-stage "$MNT" -o \
                "lowerdir=$STAGE/lower1:$STAGE/lower2,upperdir=$STAGE/upper,workdir=$STAGE/work,redirect_dir=on,index=on"
            ;;
        ext4)
            cp -a "$STAGE/lower2/." "$STAGE/lower1/." "$STAGE/plain"
            mount --bind "$STAGE/plain" "$MNT"
            ;;
        *) die "--backend $BACKEND: takes unionfs, overlayfs or ext4" ;;
    esac
}

# Whether something is mounted, by the mount table: to look at a mount that hangs would hang us.
stage_mounted() {
    awk -v at="$MNT" '$5 == at { found = 1 } END { exit !found }' /proc/self/mountinfo
}

stage_unmount() {
    stage_mounted || return 0
    within 60 umount "$MNT"
}

# Ends the mount, in use or not, and removes the layers.
stage_end() {
    [[ -n $STAGE ]] || return 0
    if [[ -n $RUNNING ]]; then
        kill "$RUNNING" 2>/dev/null || true
        wait "$RUNNING" || true
    fi
    if ! stage_unmount 2>/dev/null; then
        # Forced: it cuts the connection of a filesystem that does not answer.
        within 20 umount -f "$MNT" 2>/dev/null || true
        ! stage_mounted || within 20 umount -l "$MNT" || true
    fi
    if stage_mounted; then
        say "left mounted: $MNT" >&2
    else
        rmdir "$MNT"
        rm -rf --one-file-system "$STAGE"
    fi
    STAGE=
}

trap stage_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
