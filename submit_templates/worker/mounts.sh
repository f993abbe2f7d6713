# shellcheck shell=bash
# Mounts of the node: automounts are woken, what hangs is left behind; binds and software are checked.

_wake() {  # PATH...; runs in a child that may hang: asking for what is inside wakes an automount -> a line for each
    local path
    for path in "$@"; do
        if [ -d "$path/." ] || [ -e "$path" ]; then printf 'there\n'; else printf 'missing\n'; fi
    done
}

_wake_all() {  # PATH... -> woken: there, missing or hanging, for each
    local limit
    woken=()
    _get limit limit.path 30
    while [ $# -gt 0 ]; do
        _ask "$limit" _wake "$@" || answer+=(hanging)
        woken+=("${answer[@]}")
        shift ${#answer[@]}
    done
}

_wake_binds() {  # the sources on the host, before the container starts
    local i
    for i in "${!software[@]}"; do
        bind_from+=("${software_from[i]}") bind_to+=("${software_to[i]}") bind_mode+=(ro) bind_required+=(yes)
        software_path[i]=${software_to[i]}
    done
    [ ${#bind_from[@]} = 0 ] || _check_binds kept "${bind_from[@]}"
}

_check_targets() {  # inside the image, or in a rehearsal: what should be bound must be there
    [ ${#bind_to[@]} = 0 ] || _check_binds used "${bind_to[@]}"
}

_check_binds() {  # RESULT PATH...: for each bind the path that must be there, and what to call it if it is
    local i good=$1 words woken=() paths=("${@:2}")
    _wake_all "${paths[@]}"
    for i in "${!paths[@]}"; do
        words="bind ${bind_from[i]}:${bind_to[i]}: ${paths[i]} is ${woken[i]} on $HOSTNAME"
        bind_result[i]=$good
        [ "${woken[i]}" != there ] || continue
        bind_result[i]=fatal
        [ "${bind_required[i]}" = no ] || _finish "$NO_BIND" "$words, and it is required"
        bind_result[i]=dropped
        _log "$words; it is optional: dropped"
    done
}

_check_software() {  # inside the image, or in a rehearsal: where the site has mounted it, or else where it comes from
    local i limit
    _get limit limit.path 30
    for i in "${!software[@]}"; do
        if ! _ask "$limit" _find_software "${software_to[i]}" "${software_from[i]}" || [ ${#answer[@]} = 0 ]; then
            if [ "$rehearsal" = true ]; then
                _log "software ${software[i]}: ${software_from[i]} is not here; the payload has to do with what this machine has"
                continue
            fi
            _finish "$NO_BIND" "software ${software[i]}: neither ${software_to[i]} nor ${software_from[i]} is there"
        fi
        software_path[i]=${answer[0]}
    done
}

_find_software() {  # TO FROM; runs in a child that may hang
    local entries=()
    shopt -s nullglob dotglob
    entries=("$1"/*)
    if [ ${#entries[@]} -gt 0 ]; then printf '%s\n' "$1"; elif [ -e "$2" ]; then printf '%s\n' "$2"; fi
}

_fail_bind() {  # TARGET
    local i
    for i in "${!bind_to[@]}"; do [ "${bind_to[i]}" != "$1" ] || bind_result[i]=fatal; done
    _finish "$NO_BIND" "the runtime did not bind $1: in the container it is something else or missing"
}
