# shellcheck shell=bash
# Outputs to XRootD (xrdcp, xrdfs) and WebDAV (curl). Each is put under the attempt's name and compared. Then the attempt takes the
# job's lock, which only one can have, looks which final names are there, and renames: a server's own renaming may overwrite.

_remote() {  # put|there|move|remove|make URL [FILE or URL] -> problem, hopeless. `make`: fails when it is there
    local command=() path=${2#*://}
    if [[ $2 == http* ]]; then
        case $1 in
            put) command=(-T "$3") ;;
            there) command=(-I) ;;
            move) command=(-X MOVE -H "Destination: $3" -H 'Overwrite: F') ;;
            remove) command=(-X DELETE) ;;
            make) command=(-X MKCOL) ;;
        esac
        _heard curl -q -sS -f -g -o /dev/null --connect-timeout 20 --speed-limit 1 --speed-time 300 "${command[@]}" -- "$2"
        return "$?"
    fi
    case $1 in
        put) command=(xrdcp --nopbar --force --posc --path --cksum adler32 "$3" "$2") ;;
        make) command=(xrdcp --nopbar "$control/lock" "$2") ;;
        there) command=(stat "${path#*/}") ;;
        move) command=(mv "${path#*/}" "/${3#*://*//}") ;;
        remove) command=(rm "${path#*/}") ;;
    esac
    [ "${command[0]}" = xrdcp ] || command=(xrdfs "${path%%/*}" "${command[@]}")
    _heard _xrd "${command[@]}"
}

_put_remote() {  # INDEX -> problem, hopeless
    local url=${out_part[$1]}
    if _remote put "$url" "${out_path[$1]}"; then
        [[ $url == http* ]] || return 0
    elif [[ $problem != *'querying the checksum'* ]]; then  # an XRootD server without checksums gets it read back, too
        [[ $problem =~ \ (403|404|409|500) ]] || return 1
        _make_folders_of "$url"
        _remote put "$url" "${out_path[$1]}" || return 1
    fi
    _read_back "$url" || return 1
    [ "${answer[0]}" = "${out_sha[$1]}" ] || { problem="arrived damaged"; return 1; }
}

_make_folders_of() {  # URL of WebDAV: many servers make none of themselves
    local url=${set_of[output.root]} rest=${1#"${set_of[output.root]}/"}
    _remote make "$url/" || :
    while [[ $rest == */* ]]; do
        url+=/${rest%%/*} rest=${rest#*/}
        _remote make "$url/" || :
    done
}

_read_back() {  # URL -> answer (its digest), size, problem
    rm -f -- "$control/back"
    _bring "$1" "$control/back" || return 1
    _sha256 "$control/back"
    _size "$control/back"
    rm -f -- "$control/back"
}

_take_lock() {  # signals wait from then on, so that it does not stay
    local waited=0 lock=${out_part[0]%"$attempt.part"}lock
    [[ $lock != http* ]] || lock+=/
    while :; do
        critical+=.
        ! _remote make "$lock" || break
        _calm
        waited=$((waited + 1))
        if [[ ! $problem =~ exists|\ opened|\ 405 ]]; then
            [ -z "$hopeless" ] && [ "$waited" -lt 4 ] || _finish "$STAGE_OUT" "the lock $lock cannot be made: $problem"
        elif [ "$waited" -gt "${FERMIGRID_RIVAL_WAIT:-60}" ]; then
            _finish "$STAGE_OUT" "another attempt holds the lock $lock. When no other attempt of $job runs: remove it, then run the job again"
        fi
        _sleep 0.5
    done
    parts+=("$lock")
}

_is_there() {  # URL
    ! _retry _remote there "$1" || return 0
    [[ $problem == *'[3011]'* || $problem == *' 404'* ]] || _finish "$STAGE_OUT" "$1: $problem"
    return 1
}

_publish_remote() {
    local i there='' foreign='' missing=()
    set_of[http_proxy]=''  # that is for what many read
    printf '%s\n' "$attempt" > "$control/lock"
    _name_outputs
    _put_all _put_remote
    _take_lock
    for i in "${!out_file[@]}"; do
        if ! _is_there "${out_file[i]}"; then missing+=("$i"); continue; fi
        _retry _read_back "${out_file[i]}" || _finish "$STAGE_OUT" "${out_file[i]} is there from another attempt and cannot be read: $problem"
        [ "${answer[0]}" = "${out_sha[i]}" ] || foreign=yes
        out_result[i]=same out_bytes[i]=$size out_sha[i]=${answer[0]} there+=" ${out_file[i]}"
    done
    if [ -n "$foreign" ]; then
        [ ${#missing[@]} = 0 ] || _finish_mixture "$there" "${out_file[missing[0]]}" remove
        for i in "${!out_result[@]}"; do out_result[i]=earlier; done
    fi
    for i in ${missing[@]+"${missing[@]}"}; do
        parts=("${out_file[i]}" "${parts[@]}")  # all or none
        _retry _remote move "${out_part[i]}" "${out_file[i]}" || _finish "$STAGE_OUT" "${out_part[i]} cannot be renamed: $problem"
    done
    parts=("${parts[@]:${#missing[@]}}")
    for i in ${missing[@]+"${missing[@]}"}; do unset "parts[i]"; done
    _wipe_parts
}

_wipe_remote() {
    local url
    _now
    deadline=$((now_ms + 20000))
    for url in "${parts[@]}"; do
        _now
        [ "$now_ms" -ge "$deadline" ] || _remote remove "$url" || :
    done
}
