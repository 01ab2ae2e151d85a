# shellcheck shell=bash
# Sourced by the scripts that run container engines: a place where these find what they need, and their configuration.
#
#   STAGE      a directory on a disk
#   TEST_USER  the ordinary user

# What engines need and this machine may not give, in our mount namespace alone.
prepare_namespace() {
    mount --make-rprivate /
    # A hierarchy of the second version beside the first, with controllers in it, is refused by crun.
    if grep -qs . /sys/fs/cgroup/unified/cgroup.controllers; then
        umount /sys/fs/cgroup/unified
    fi
    # As udev has it on every installation: open to all.
    if [[ $(stat -c %a /dev/fuse) != 666 ]]; then
        mkdir "$STAGE/dev"
        mount -t tmpfs -o mode=755,size=1m unionfs-containers "$STAGE/dev"
        mknod -m 666 "$STAGE/dev/fuse" c 10 229
        chmod 666 "$STAGE/dev/fuse"
        mount --bind "$STAGE/dev/fuse" /dev/fuse
    fi
    # Ids for the user's containers, and for those of --userns=auto as root.
    local file user
    for file in subuid subgid; do
        cp "/etc/$file" "$STAGE/$file" 2>/dev/null || true
        for user in "$TEST_USER" containers; do
            sed -i "/^$user:/d" "$STAGE/$file"
        done
        printf '%s:700000:65536\ncontainers:800000:1000000\n' "$TEST_USER" >>"$STAGE/$file"
        chmod 644 "$STAGE/$file"
        [[ -e /etc/$file ]] || : >"/etc/$file"
        mount --bind "$STAGE/$file" "/etc/$file"
    done
    # Engines without root want the root to be shared; nothing of it leaves this namespace.
    mount --make-rshared /
}

# configure DIR PROGRAM WHO: stores and configuration of the engines for a user, who is root or `user`.
configure() {
    local dir=$1 program=$2 who=$3
    mkdir -p "$dir"/{home,xdg,tmp,work}
    chmod 700 "$dir/xdg"
    {
        printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\nrootless_storage_path = "%s"\n' \
            "$dir/root" "$dir/run" "$dir/root"
        [[ $program == overlayfs ]] || printf '[storage.options.overlay]\nmount_program = "%s"\n' "$program"
    } >"$dir/storage.conf"
    {
        # Cgroups of the first version are root's alone.
        [[ $who == root ]] || printf '[containers]\ncgroups = "disabled"\n'
        [[ $who == user ]] || printf '[containers]\n'
        printf 'netns = "none"\nlog_driver = "k8s-file"\ndefault_sysctls = []\n'
        # No more than this process has: raising limits takes a privilege that not every root has.
        printf 'default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]\n'
        # With a log of events podman 4.3 may panic in a reset.
        printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\nruntime = "crun"\n'
        # Otherwise that of all stores, which a reset would remove.
        [[ $who == user ]] || printf 'tmp_dir = "%s"\n' "$dir/libpod"
    } >"$dir/containers.conf"
    [[ $who == root ]] || chown -R "$TEST_USER:" "$dir"
}

# debian_tree OUT [PACKAGE,...]: the smallest Debian of this machine's release with APT, by its sources and settings, as
# a directory or a tar archive.
debian_tree() {
    local out=$1 options=() line
    while read -r line; do
        options+=(--aptopt="$line")
    done < <(apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries)' || true)
    [[ -z ${2:-} ]] || options+=(--include="$2")
    # The sources of this machine, as one-line entries.
    # shellcheck disable=SC2016 # apt-get has these variables.
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' "Created-By: Packages" "Origin: Debian" |
        sort -u >"$STAGE/sources.list"
    mmdebstrap --quiet --mode=root --variant=minbase "${options[@]}" \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$out" "$STAGE/sources.list"
}
