# shellcheck shell=bash
# Mounts of the node: automounts are woken, what hangs is left behind; binds and software are checked.

_open() {  # PATH -> words: there, missing, or what is wrong. To open wakes an automount, and asks a dead daemon where a test would ask a cache
    words=there
    if [ -d "$1/." ] || [ -f "$1" ] || [ ! -e "$1" ]; then
        { true < "$1"; } 2> /dev/null || words=$( { true < "$1"; } 2>&1) || :
        words=${words##*: }
        case $words in
            'No such file'* | 'Not a dir'*) words=missing ;;
            '') words=there ;;
            'Permission'*) [ ! -e "$1" ] || words=there ;;
        esac
    fi
    _health "$1"
}

_wake() { local words; _open "$1"; printf '%s\n' "$words"; }  # PATH; in a child

_wake_all() {  # PATH... -> woken: there, missing, hanging or what is wrong, for each
    local path
    woken=()
    for path in "$@"; do
        _ask_path "$path" _wake "$path" || answer=(hanging)
        woken+=("${answer[0]}")
    done
}

_ask_path() {  # PATH COMMAND...: asks about PATH within limit.path, and again after 1, 2, 4, 8 s while the answer may pass
    local limit pause end
    _get limit limit.path 30
    _now
    end=$((now_ms + limit * 1000))
    for pause in 1 2 4 8 16; do
        _ask "$limit" "${@:2}" || return 1
        if [ "$pause" = 16 ] || ! _may_pass "$1" "${answer[*]}"; then return 0; fi
        _now
        limit=$(((end - now_ms + 999) / 1000 - pause))
        [ "$limit" -gt 0 ] || return 0
        _sleep "$pause"
    done
}

_may_pass() {  # PATH WORDS: a fault of the moment, or an automount that is still at work
    case $2 in
        *'Too many levels'* | *'nput/output'*) ;;
        *missing*) _is_automount "$1" ;;
        *) return 1 ;;
    esac
}

_is_automount() {  # PATH: on autofs itself, with nothing mounted over it
    local point rest kind='' best=/
    while read -r _ _ _ _ point rest; do
        if [[ $1/ == "${point%/}"/* ]] && [ ${#point} -ge ${#best} ]; then best=$point kind=${rest#* - }; fi
    done < /proc/self/mountinfo
    [[ $kind == 'autofs '* ]]
}

_is_broken() {  # PATH WORDS: a mount that another node may have in order
    case $1:$2 in *:*'ransport endpoint'* | /cvmfs/*:hanging | /cvmfs/*:*'nput/output'* | /cvmfs/*:*'tale file'*) return 0 ;; esac
    return 1
}

_health() {  # PATH; in a child: what CVMFS says of a repository, for the report, once
    local name value repository=${1#/cvmfs/} values=()
    [[ $1 == /cvmfs/?* ]] && command -v getfattr > /dev/null || return 0
    repository=/cvmfs/${repository%%/*}
    [[ $json_cvmfs != *"\"$repository\""* ]] || return 0
    for name in revision nioerr proxy; do
        [ "$name${values[3]:-0}$words" != proxy0there ] || continue  # all is well
        value=$(getfattr --absolute-names --only-values -n "user.$name" -- "$repository") || return 0
        values+=("$name" "$value")
    done
    _object path "$repository" "${values[@]}"
    printf '@cvmfs %s\n' "$object"
    json_cvmfs+=$object
}

_wake_binds() {  # the sources on the host, before the container starts
    local i
    for i in "${!software[@]}"; do
        bind_from+=("${software_from[i]}") bind_to+=("${software_to[i]}") bind_mode+=(ro) bind_required+=(yes)
        software_path[i]=${software_to[i]}
    done
    [ ${#bind_from[@]} = 0 ] || _check_binds kept "${bind_from[@]}"
    _wake_below
}

_wake_below() {  # an automount that is bound stays asleep in the container: what the job names below it is woken here
    local i word rest paths=()
    for i in "${!bind_from[@]}"; do
        _is_automount "${bind_from[i]}" || continue
        for word in "${args[@]}" "${env_list[@]-}" "${row_env[@]-}" "${in_source[@]-}" "${set_of[output.root]:-}"; do
            word=${word#*=}
            rest=${word#"${bind_to[i]}"/}
            [ "$rest" = "$word" ] || paths+=("${bind_from[i]}/$rest")
        done
    done
    _wake_all ${paths[@]+"${paths[@]}"}
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
        [ "${bind_required[i]}" = no ] || _finish_bind "${paths[i]}" "${woken[i]}" "$words, and it is required"
        bind_result[i]=dropped
        _log "$words; it is optional: dropped"
    done
}

_check_software() {  # inside the image, or in a rehearsal: where the site has mounted it, or else where it comes from
    local i
    for i in "${!software[@]}"; do
        _ask_path "${software_from[i]}" _find_software "${software_to[i]}" "${software_from[i]}" || answer=(hanging)
        if [[ ${answer[0]} != /* ]]; then
            if [ "$rehearsal" = true ]; then
                _log "software ${software[i]}: ${software_from[i]} is not here; the payload has to do with what this machine has"
                continue
            fi
            _finish_bind "${software_from[i]}" "${answer[0]}" \
                "software ${software[i]}: ${software_to[i]} is not there, and ${software_from[i]} is ${answer[0]} on $HOSTNAME"
        fi
        software_path[i]=${answer[0]}
    done
}

_find_software() {  # TO FROM; runs in a child that may hang -> the one that is there, or what is wrong
    local entries=() words=there
    shopt -s nullglob dotglob
    entries=("$1"/*)
    if [ ${#entries[@]} -gt 0 ]; then words=$1; else _open "$2"; fi
    [ "$words" != there ] || words=$2
    printf '%s\n' "$words"
}

_finish_bind() {  # PATH STATE WORDS...
    ! _is_broken "$1" "$2" || _finish "$CVMFS_BROKEN" "CVMFS is broken: $3"
    _finish "$NO_BIND" "$3"
}

_find_broken() {  # -> broken: which of the image and the binds cannot be read now; true when it may be in order on another node
    local i status=1 woken=() paths=()
    broken=''
    for i in "${!bind_to[@]}"; do
        case ${bind_result[i]:-used} in kept) paths+=("${bind_from[i]}") ;; used) paths+=("${bind_to[i]}") ;; esac
    done
    if _starts_container; then paths+=("$image"); else paths+=(/bin/sh); fi
    _wake_all "${paths[@]}"
    for i in "${!paths[@]}"; do
        case ${woken[i]} in there | missing) continue ;; esac
        broken+=", and ${paths[i]} is broken on $HOSTNAME: ${woken[i]}"
        ! _is_broken "${paths[i]}" "${woken[i]}" || status=0
    done
    return "$status"
}
