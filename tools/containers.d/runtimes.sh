# shellcheck shell=bash
# What uses a mounted root without an engine. Without root everything happens in a user namespace.

case_crun() {
    in_own_mounts with_tree oci_bundle crun
}

case_runc() {
    in_own_mounts with_tree oci_bundle runc
}

case_bubblewrap() {
    in_own_mounts with_tree inside_bubblewrap
}

case_chroot() {
    in_own_mounts with_tree inside_chroot
}

# mount.fuse3(8) as containerd's fuse-overlayfs snapshotter calls it.
case_mount_fuse3() {
    [[ $PROGRAM != overlayfs ]] || skip "the kernel's overlayfs is no program"
    [[ -x /sbin/mount.fuse3 ]] || skip "no mount.fuse3, of the package fuse3"
    in_own_mounts by_mount_fuse3
}

case_unionfs_run() {
    [[ $PROGRAM != overlayfs && $("$PROGRAM" run --help 2>&1) == *--volume* ]] || skip "has no command to run programs with"
    make_layers
    local status=0
    mkdir -p "$W/shared"
    echo host >"$W/shared/file"
    "$PROGRAM" run --volume "$W/shared:/mnt/shared" --volume "$W/shared:/mnt/fixed:ro" -o "$LAYERS" -- sh -c '
        set -e; cat /mnt/shared/file; echo new >/mnt/shared/new; ! touch /mnt/fixed/x 2>/dev/null; test -e /proc/self/stat
        echo x >/dev/null; test -d /sys/class; mv /tree/a /tree/moved; sleep 1000 & exit 7' >"$W/output" || status=$?
    same "exit status" 7 "$status"
    same "output" host "$(cat "$W/output")"
    same "the volume" new "$(cat "$W/shared/new")"
    same "the upper" "" "$(find "$W/upper/mnt" -mindepth 2)"
    same "what was renamed" "of a" "$("$PROGRAM" run -o "$LAYERS" -- cat /tree/moved/f)"
}

# Runs a function where mounts end with it, and as root of a user namespace without root.
in_own_mounts() {
    local how=(--mount --propagation private)
    # With the ids of /etc/subuid.
    [[ $WHO == root ]] || how+=(--user --map-root-user --map-auto)
    # shellcheck disable=SC2016
    unshare "${how[@]}" timeout --kill-after=10 80 bash -c 'for f in "$SCRIPTS"/*.sh; do case $f in */manifest.sh | */workload-*) ;; *) source "$f" ;; esac; done; "$@"' bash "$@"
}

# Three layers below an upper: the image, a change of it, a whiteout.
make_layers() {
    # overlayfs leaves a directory that nobody may enter.
    chmod -R u+rwX "$W/work" 2>/dev/null || true
    rm -rf "$W/upper" "$W/work" "$W/layer1" "$W/layer2" "$W/layer3" "$W/tree"
    mkdir -p "$W/upper" "$W/work" "$W/layer1" "$W/layer2/etc" "$W/layer3/tree/b" "$W/tree"
    tar -C "$W/layer1" -xf "$SHARED/base.tar"
    echo second >"$W/layer2/etc/second"
    echo third >"$W/layer3/tree/b/third"
    LAYERS="lowerdir=$W/layer3:$W/layer2:$W/layer1,upperdir=$W/upper,workdir=$W/work"
}

with_tree() {
    make_layers
    if [[ $PROGRAM == overlayfs ]]; then
        mount -t overlay overlay "$W/tree" -o "$LAYERS${USERXATTR:-}"
    else
        "$PROGRAM" -o "$LAYERS" "$W/tree"
    fi
    "$@"
    umount "$W/tree"
    check_upper
}

# What is run in the tree; the same for all.
INSIDE='set -e; cat /etc/second /tree/b/third; echo more >>/etc/motd; mkdir /new; mv /new /tree/new; rm /tree/a/f; ln /etc/group /hard
    chmod 4755 /hard; touch /tree/c/x 2>/dev/null || mkdir /tree/c'

check_upper() {
    same "the upper's file" $'welcome\nmore' "$(cat "$W/upper/etc/motd")"
    [[ -d $W/upper/tree/new && -d $W/upper/tree/c && ! -f $W/upper/tree/a/f ]] || fail "not in the upper: tree/new, tree/c"
    same "mode and links" "4755 2" "$(stat -c '%a %h' "$W/upper/hard")"
}

oci_bundle() {
    local runtime=$1
    rm -rf "$W/bundle"
    mkdir -p "$W/bundle"
    (cd "$W/bundle" && "$runtime" spec)
    python3 - "$W/bundle/config.json" "$W/tree" "$INSIDE" "$WHO" <<'P'
import json, sys
path, root, script, who = sys.argv[1:]
spec = json.load(open(path))
spec["root"] = {"path": root, "readonly": False}
spec["process"].update(terminal=False, args=["sh", "-c", script], cwd="/")
# Limits and cgroups are no matter of the root filesystem.
spec["process"].pop("rlimits", None)
spec["linux"].pop("resources", None)
spec["mounts"] = [m for m in spec["mounts"] if m["type"] not in ("cgroup", "mqueue")]
kinds = [n for n in spec["linux"]["namespaces"] if n["type"] not in ("cgroup",)]
spec["linux"]["namespaces"] = kinds
for kind in ("capabilities",):
    for names in spec["process"].get(kind, {}).values():
        names[:] = sorted({*names, "CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE", "CAP_FSETID"})
json.dump(spec, open(path, "w"))
P
    same "output" $'second\nthird' "$(timeout 60 "$runtime" --root "$W/runtime" run -b "$W/bundle" "case-$$")"
}

inside_bubblewrap() {
    same "output" $'second\nthird' "$(timeout 60 bwrap --bind "$W/tree" / --proc /proc --dev /dev --unshare-pid \
        sh -c "$INSIDE")"
}

inside_chroot() {
    same "output" $'second\nthird' "$(timeout 60 chroot "$W/tree" sh -c "$INSIDE")"
}

by_mount_fuse3() {
    make_layers
    ln -sf "$PROGRAM" "$W/fuse-overlayfs"
    # The snapshotter's arguments: the program and what to call it, the target, and the options one by one.
    PATH=$W:$PATH timeout 60 mount.fuse3 "$W/fuse-overlayfs#" "$W/tree" -o "$LAYERS" -o nosuid
    inside_chroot
    umount "$W/tree"
    check_upper
    # For a view, without an upper.
    PATH=$W:$PATH timeout 60 mount.fuse3 "$W/fuse-overlayfs#" "$W/tree" -o "lowerdir=$W/layer2:$W/layer1" -o ro
    same "a view" second "$(cat "$W/tree/etc/second")"
    ! touch "$W/tree/x" 2>/dev/null || fail "wrote to a view"
    umount "$W/tree"
}
