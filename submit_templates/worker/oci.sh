# shellcheck shell=bash
# podman, for batches of a site that names it: Docker's kind of container, by the same contract. A container has a process namespace
# of its own, whose first process is a shell that only waits, because the kernel passes few signals to such a one. All that podman
# keeps is in one folder of the job, so that nothing is shared with other jobs, and nothing stays.

_podman() {  # -> command: podman with its own options; oci, its folder
    _runtime_environment
    if [ -z "$oci" ]; then
        oci=$scratch/.session/oci
        ( umask 077; mkdir -p -- "$oci/run" "$oci/tmp" "$oci/var_tmp" )
        exec {oci_fd}> >(trap - ERR; set +Ee; trap '' INT TERM QUIT HUP; exec > /dev/null 2>&1 3>&- 4>&-; read -r _; _remove_podman)
    fi
    command=(env -i "${runtime_env[@]}" "XDG_RUNTIME_DIR=$oci/run" "$runtime" --root "$oci/root" --runroot "$oci/runroot"
        --cgroup-manager=cgroupfs --events-backend=none --log-level=fatal)
    [ "$EUID" = 0 ] || command+=(--storage-opt=ignore_chown_errors=true)
}

_podman_in() {  # FOLDER -> command, up to binds; bind_option; in_image
    _podman
    rm -f -- "$oci/pid"
    command+=(run --rm --pull=never --entrypoint= --pidfile "$oci/pid" --cgroups=disabled --network=host --log-driver=passthrough
        --security-opt=label=disable --ulimit=host --read-only --workdir "$1" --volume "$oci/tmp:/tmp" --volume "$oci/var_tmp:/var/tmp")
    [ "$EUID" = 0 ] || command+=(--userns=keep-id)
    bind_option=--volume in_image=(--rootfs "$image:O")
    [ "$rung" != registry ] || in_image=("$image")
    in_image+=(/bin/sh -c '"$@"; exit $?' sh)
}

_podman_pull() {  # the registry's image, as it is, into podman's folder
    local reference=${set_of[image.registry]} status=0 limit command proxy=${set_of[http_proxy]:-}
    _get limit limit.http 1800
    _podman
    [ -z "$proxy" ] || command=(env -i "http_proxy=$proxy" "https_proxy=$proxy" "${command[@]:2}")
    _run "$limit" "${command[@]}" pull -q "$reference" >&2 || status=$?
    if [ "$status" != 0 ]; then _tried registry "$reference" "failed ($status)"; return 1; fi
    _served registry "$reference" "${reference#*://}"
}

_podman_init() {  # -> init, the container's first process; false when there is none
    init=''
    [ -r "$oci/pid" ] && { read -r init < "$oci/pid" || :; }
    [[ $init =~ $NUMBER ]] && [ -e "/proc/$init" ] && [ ! "/proc/$init/ns/pid" -ef /proc/self/ns/pid ]
}

_end_podman() {  # neither the container stays nor what watches over it
    local i pid init
    for i in 1 2 3 4 5 6 7 8 9; do
        ! _podman_init || kill -KILL "$init" 2> /dev/null || :
        _ask 5 grep -ls -- "${oci%i}[i]" /proc/[0-9]*/cmdline || :
        [ ${#answer[@]} != 0 ] || break
        [ "$i" -lt 8 ] || for pid in "${answer[@]//[!0-9]/}"; do kill -KILL "$pid" 2> /dev/null || :; done
        read -r -t "0.$i" -u "$pipe_fd" _ || :
    done
}

_remove_podman() {  # what it keeps is another's outside its namespace; then the process that holds that namespace
    local command pid=''
    [ -d "$oci/root" ] || return 0  # done already
    _end_podman
    _podman
    if [ "$EUID" = 0 ]; then umount "$oci/root/overlay" 2> /dev/null; command=(); else command+=(unshare); fi
    _ask 60 ${command[@]+"${command[@]}"} rm -rf -- "$oci/root"
    [ ! -r "$oci/run/libpod/tmp/pause.pid" ] || read -r pid < "$oci/run/libpod/tmp/pause.pid"
    [[ ! $pid =~ $NUMBER ]] || kill -KILL "$pid" 2> /dev/null
}
