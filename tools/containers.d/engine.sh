# shellcheck shell=bash
# Containers of podman.

case_run() {
    need_base
    same "output" "hello" "$(podman run --rm localhost/base echo hello)"
    local status=0
    podman run --rm localhost/base sh -c 'exit 7' || status=$?
    same "exit status" 7 "$status"
    same "owner" "0:0" "$(podman run --rm localhost/base stat -c %u:%g /bin/busybox)"
    same "set-user-ID program" 0 "$(podman run --rm --user 5:6 localhost/base sh -c /suid-id)"
}

case_run_in_background() {
    need_base
    podman run -d --name background localhost/base sh -c 'echo begin >/state; sleep 1000' >/dev/null
    podman exec background sh -c 'cat /state; echo exec >>/state'
    podman exec -d background sh -c 'echo detached >>/state'
    sleep 0.5
    same "state" $'begin\nexec\ndetached' "$(podman exec background cat /state)"
    podman stop -t 0 background >/dev/null
    podman start background >/dev/null
    same "state after a start" $'begin' "$(podman exec background cat /state)"
    podman rm -f -t 0 background >/dev/null
}

case_cp() {
    need_base
    podman run -d --name copy localhost/base sleep 1000 >/dev/null
    rm -rf "$W/in" "$W/out"
    mkdir -p "$W/in/sub"
    echo a >"$W/in/a"
    ln -s a "$W/in/link"
    echo b >"$W/in/sub/b"
    podman cp "$W/in" copy:/in
    same "copied in" $'a\nb\na' "$(podman exec copy sh -c 'cat /in/a /in/sub/b; readlink /in/link')"
    podman exec copy sh -c 'echo changed >/in/a; echo c >/in/c'
    podman cp copy:/in "$W/out"
    same "copied out" $'changed\nb\nc' "$(cat "$W/out/a" "$W/out/sub/b" "$W/out/c")"
    podman rm -f -t 0 copy >/dev/null
    # A container that does not run.
    podman create --name copy localhost/base true >/dev/null
    podman cp "$W/in/a" copy:/etc/motd
    podman cp copy:/etc/motd "$W/motd"
    same "copied into a container at rest" a "$(cat "$W/motd")"
    podman rm copy >/dev/null
}

case_diff_and_commit() {
    local found
    need_base
    podman run --name changed localhost/base sh -c '
        echo more >>/etc/motd; rm /tree/a/f; mkdir /new; echo x >/new/x; mv /tree/b /tree/renamed
        rm -r /full; mkdir /full; echo only >/full/only; chmod 600 /data; ln -s x /link'
    found=$(podman diff changed)
    for line in "C /etc/motd" "D /tree/a/f" "A /new" "A /new/x" "D /tree/b" "A /tree/renamed" "A /tree/renamed/f" \
        "A /full/only" "C /data" "A /link"; do
        has "diff" "$line" "$found"
    done
    has_one "diff" "$found" "D /full/1" "D /full"
    has_not "diff" "C /bin/busybox" "$found"
    podman commit -q changed localhost/committed >/dev/null
    same "committed" $'welcome\nmore\nx\nof b\nonly\n600\nx' "$(podman run --rm localhost/committed sh -c '
        cat /etc/motd /new/x /tree/renamed/f; ls /full; stat -c %a /data; readlink /link; ls /tree/b /tree/a/f' 2>/dev/null)"
    podman export changed | tar -tf - >"$W/list"
    has "export" "tree/renamed/f" "$(cat "$W/list")"
    has_not "export" "tree/b/f" "$(cat "$W/list")"
    podman rm changed >/dev/null
}

# Not the size tells of the change, and the time only below its second: archives have full seconds.
case_same_second() {
    local now seconds
    need_base
    for _ in 1 2 3 4 5 6; do
        podman rm -f -i second >/dev/null
        # The file's time is that of the second in which it will be changed.
        now=$(($(date +%s) + 3))
        podman run --name first localhost/base sh -c "echo aaaa >/file; touch -d @$now /file"
        podman commit -q first localhost/first >/dev/null
        podman rm first >/dev/null
        podman create --name second localhost/first sh -c "
            while test \$(date +%s) -lt $now; do usleep 20000; done; echo bbbb >/file; stat -c %Y /file" >/dev/null
        seconds=$(podman start -a second)
        [[ $seconds == "$now" ]] && break
        seconds=
    done
    [[ -n $seconds ]] || skip "this machine is too busy to change a file within a second"
    has "diff" "C /file" "$(podman diff second)"
    podman commit -q second localhost/second >/dev/null
    same "the committed file" bbbb "$(podman run --rm localhost/second cat /file)"
    podman rm second >/dev/null
}

case_volumes() {
    need_base
    rm -rf "$W/volume"
    mkdir -p "$W/volume"
    echo host >"$W/volume/file"
    same "in the container" $'host' "$(podman run --rm -v "$W/volume:/mnt/v" localhost/base sh -c 'cat /mnt/v/file; echo new >/mnt/v/new')"
    same "on the host" new "$(cat "$W/volume/new")"
    ! podman run --rm -v "$W/volume:/mnt/v:ro" localhost/base sh -c 'echo x >/mnt/v/x' 2>/dev/null || fail "wrote through a read-only volume"
    podman volume create named >/dev/null
    podman run --rm -v named:/tree localhost/base sh -c 'echo x >/tree/x'
    same "a named volume begins with what the image has" $'a\nb\nx' "$(podman run --rm -v named:/tree localhost/base ls /tree)"
    podman volume rm named >/dev/null
}

# A volume below an upper of its own.
case_volume_overlay() {
    need_base
    rm -rf "$W/volume"
    mkdir -p "$W/volume/sub"
    echo host >"$W/volume/file"
    echo old >"$W/volume/sub/old"
    same "in the container" $'host\nchanged\nnew' "$(podman run --rm -v "$W/volume:/mnt/v:O" localhost/base sh -c '
        cat /mnt/v/file; echo changed >/mnt/v/file; rm /mnt/v/sub/old; echo new >/mnt/v/new; cat /mnt/v/file /mnt/v/new
        test ! -e /mnt/v/sub/old')"
    same "on the host" $'host\nold' "$(cat "$W/volume/file" "$W/volume/sub/old")"
    [[ ! -e $W/volume/new ]] || fail "the volume has the container's file"
}

case_read_only() {
    need_base
    same "reading" welcome "$(podman run --rm --read-only localhost/base cat /etc/motd)"
    ! podman run --rm --read-only localhost/base sh -c 'echo x >/x' 2>/dev/null || fail "wrote to a read-only root"
    same "writing to its tmpfs" x "$(podman run --rm --read-only --tmpfs /mnt localhost/base sh -c 'echo x >/mnt/x; cat /mnt/x')"
}

# Ids of the image appear shifted into the container's namespace without a copy of the image.
case_id_mapping() {
    local map found
    need_built
    if [[ $WHO == root ]]; then
        map=0:300000:5000
    else
        map=0:1:5000
    fi
    like_built --uidmap "$map" --gidmap "$map" localhost/built
    # What the container makes has ids of the image in the committed image.
    podman run --name mapped --uidmap "$map" --gidmap "$map" localhost/built sh -c '
        echo x >/x; chown 7:8 /x; chmod 4755 /x; echo more >>/final/a; chown 9 /final/b; rm /suid'
    podman commit -q mapped localhost/mapped >/dev/null
    podman rm mapped >/dev/null
    found=$(podman run --rm localhost/mapped stat -c '%n %u:%g %a' /x /final/a /final/b)
    same "ids in the committed image" $'/x 7:8 4755\n/final/a 9:4 640\n/final/b 9:4 640' "$found"
}

case_user_namespaces() {
    need_built
    if [[ $WHO == root ]]; then
        like_built --userns=auto:size=5000 localhost/built
    else
        same "the user himself" "$(id -u)" "$(podman run --rm --userns=keep-id localhost/built id -u)"
        same "root's files are root's" 0 "$(podman run --rm --userns=keep-id localhost/built stat -c %u /bin/busybox)"
        podman run --rm --userns=keep-id localhost/built sh -c 'echo x >/tmp/x && stat -c %u /tmp/x' >/dev/null
        podman run --rm --userns=nomap localhost/built true
        like_built --userns=auto:size=5000 localhost/built
    fi
}

# What storage.conf does not say can be said in a call.
case_storage_options() {
    need_base
    local store=$DIR/other options=()
    [[ $PROGRAM == overlayfs ]] || options=(--storage-opt "overlay.mount_program=$PROGRAM")
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$store/root" "$store/run" >"$W/storage.conf"
    other() {
        # The configuration's own options would come before these.
        CONTAINERS_STORAGE_CONF=$W/storage.conf podman --tmpdir "$store/tmp" --root "$store/root" --runroot "$store/run" --storage-driver overlay \
            "${options[@]}" --storage-opt overlay.mountopt=nodev "$@"
    }
    other import -q "$SHARED/base.tar" localhost/base >/dev/null
    same "a file" welcome "$(other run --rm localhost/base cat /etc/motd)"
    if [[ $PROGRAM != overlayfs ]]; then
        same "the root's filesystem" fuse "$(other run --rm localhost/base sh -c 'grep " / / " /proc/self/mountinfo' | sed 's/.* - \(fuse\).*/\1/')"
    fi
    other system reset -f >/dev/null
}

case_many_at_once() {
    local i names=() pids=()
    need_built
    for i in 1 2 3 4 5 6; do
        podman run --rm --name "many$i" localhost/built sh -c "echo $i >/moved/one; cat /moved/one /replaced/new" >"$W/many$i" &
        pids+=($!)
        names+=("many$i")
    done
    for i in "${pids[@]}"; do
        wait "$i" || fail "one of ${#pids[@]} containers has failed"
    done
    for i in 1 2 3 4 5 6; do
        same "container $i" "$i"$'\nnew' "$(cat "$W/many$i")"
    done
}

# Killed containers and killed podman leave a container that can be removed, and an image that serves the next one.
case_killed() {
    local pid
    need_base
    podman run -d --name killed localhost/base sh -c 'while :; do echo x >>/log; rm -f /tree/a/f; done' >/dev/null
    pid=$(podman inspect -f '{{.State.Pid}}' killed)
    sleep 0.3
    if [[ $WHO == root ]]; then
        kill -9 "$pid"
    else
        podman unshare kill -9 "$pid"
    fi
    podman wait killed >/dev/null
    same "exit status" 137 "$(podman inspect -f '{{.State.ExitCode}}' killed)"
    podman start killed >/dev/null
    podman exec killed test -s /log
    podman kill -s KILL killed >/dev/null
    podman wait killed >/dev/null
    podman rm killed >/dev/null
    command podman run --rm --name engine localhost/base sleep 1000 &
    for _ in {1..50}; do
        podman container exists engine && [[ $(podman inspect -f '{{.State.Status}}' engine) == running ]] && break
        sleep 0.1
    done
    # The engine's own process; conmon and the container live on.
    kill -9 "$!" 2>/dev/null || true
    podman exec engine true
    podman rm -f -t 0 engine >/dev/null
    same "the image" welcome "$(podman run --rm localhost/base cat /etc/motd)"
}
