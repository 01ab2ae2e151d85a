# shellcheck shell=bash
# Images: import, building, exchange.

case_import() {
    podman import -q "$SHARED/base.tar" localhost/imported >/dev/null
    like_reference base localhost/imported
}

case_build_layers() {
    build built --layers=true
    like_reference built localhost/built
}

case_build_one_layer() {
    build flat --layers=false
    like_reference built localhost/flat
}

case_build_squash() {
    build squashed --squash
    like_reference built localhost/squashed
}

case_build_squash_all() {
    build squashed-all --squash-all
    like_reference built localhost/squashed-all
}

# A second build finds the first one's layers.
case_build_cache() {
    need_base
    make_context
    podman build -q --network none -t localhost/cached "$W/context" >"$W/first"
    podman build -q --network none -t localhost/cached "$W/context" >"$W/second"
    same "the image of the cache" "$(cat "$W/first")" "$(cat "$W/second")"
    like_reference built localhost/cached
}

case_buildah_build() {
    need_base
    build for-context
    buildah build -q --no-cache --network none --layers -t localhost/by-buildah "$W/context" >/dev/null
    like_reference built localhost/by-buildah
}

case_buildah_from_scratch() {
    local container
    container=$(buildah from scratch)
    buildah add -q "$container" "$SHARED/base.tar" / >/dev/null
    buildah config --cmd /bin/sh --env PATH=/bin "$container"
    buildah run --network none "$container" sh -c 'mkdir /new && echo new >/new/file && rm /etc/motd && mv /tree/b /tree/c'
    echo host >"$W/host-file"
    buildah copy -q "$container" "$W/host-file" /new/ >/dev/null
    buildah commit -q --rm "$container" localhost/scratch >/dev/null
    same "the tree" "file:host-file:" "$(podman run --rm localhost/scratch sh -c 'ls /new | tr "\n" ":"; ls /tree/b /etc/motd' 2>/dev/null)"
    same "the renamed directory" "of b" "$(podman run --rm localhost/scratch cat /tree/c/f)"
}

case_buildah_mount() {
    local container script
    need_base
    container=$(buildah from localhost/base)
    # shellcheck disable=SC2016 # The inner shell has the variables.
    script='set -e; at=$(buildah mount "$1"); echo by-host >"$at/by-host"; cat "$at/etc/motd"; buildah umount "$1" >/dev/null'
    if [[ $WHO == root ]]; then
        same "a file of the image" "welcome" "$(timeout 60 sh -c "$script" sh "$container")"
    else
        same "a file of the image" "welcome" "$(buildah unshare sh -c "$script" sh "$container")"
    fi
    buildah commit -q --rm "$container" localhost/by-host >/dev/null
    same "what was written from outside" "by-host" "$(podman run --rm localhost/by-host cat /by-host)"
}

case_save_and_load() {
    local format
    need_built
    podman tag localhost/built localhost/saved
    for format in docker-archive oci-archive; do
        rm -f "$W/saved.tar"
        podman save -q --format "$format" -o "$W/saved.tar" localhost/saved
        podman rmi -f localhost/saved >/dev/null
        podman load -q -i "$W/saved.tar" >/dev/null
        like_built localhost/saved
    done
}

case_export_and_import() {
    need_built
    podman create --name exported localhost/built true >/dev/null
    podman export -o "$W/exported.tar" exported
    podman rm exported >/dev/null
    podman import -q "$W/exported.tar" localhost/reimported >/dev/null
    like_built localhost/reimported
}

case_image_mount() {
    local script
    need_built
    # shellcheck disable=SC2016
    script='set -e; at=$(podman image mount localhost/built); cat "$at/moved/one"; ! echo x >"$at/moved/one"
        podman image umount localhost/built >/dev/null'
    if [[ $WHO == root ]]; then
        same "a file of the image" $'one\nmore' "$(timeout 60 sh -c "$script" 2>/dev/null)"
    else
        same "a file of the image" $'one\nmore' "$(podman unshare sh -c "$script" 2>/dev/null)"
    fi
}

case_image_diff() {
    local found
    need_built
    found=$(podman diff localhost/built)
    has_one "the last step's changes" "$found" "C /moved/renamed/two" "D /moved/renamed/two"
    has "the last step's changes" "D /copied" "$found"
    has_not "the last step's changes" "C /suid" "$found"
}

# Images go from this store to a directory and back by skopeo, and umoci unpacks what was built.
case_skopeo_and_umoci() {
    local container
    need_built
    rm -rf "$W/oci" "$W/bundle"
    podman save -q --format oci-dir -o "$W/oci" localhost/built
    timeout 60 skopeo copy -q "oci:$W/oci" "oci:$W/oci2:t"
    # Without root umoci maps one id only: the owners of the image could not be compared.
    [[ $WHO == root ]] || return 0
    timeout 60 umoci unpack --image "$W/oci2:t" "$W/bundle" >/dev/null
    container=$(cd "$W/bundle/rootfs" && chroot . sh -s <"$SCRIPTS/manifest.sh")
    manifest_of localhost/built | diff -u - <(say "$container") || fail "umoci unpacks another tree"
}
