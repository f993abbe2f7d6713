# shellcheck shell=bash
# The bundle and the inputs, into the working folder; and what stage-in and stage-out share: deadlines, tries, xrdcp.

deadline=0 problem='' hopeless=''  # `hopeless`: the same try again would fail as well

_unpack_bundle() {
    [ -n "${set_of[code]:-}" ] || return 0
    _run 0 tar -xzf "$scratch/${set_of[code]}" -C "$work" --no-same-owner >&2 ||
        _end_or_full "$INTERNAL" "the bundle ${set_of[code]} cannot be unpacked"
}

_set_deadline() {  # KEY of a time limit for all files together
    local limit
    _get limit "$1" 7200
    _now
    deadline=$((now_ms + limit * 1000))
}

_left() {  # -> left: seconds until the deadline, at least 1; 0 when there is none
    left=0
    [ "$deadline" != 0 ] || return 0
    _now
    left=$(((deadline - now_ms) / 1000))
    [ "$left" -gt 0 ] || left=1
}

_retry() {  # COMMAND...: as often as the site says, until it succeeds, is hopeless, or the deadline is there -> problem, tries
    local most pause=1
    _get most stage.tries 3
    tries=1 problem=''
    while :; do
        _now
        if [ "$now_ms" -ge "$deadline" ]; then problem="${problem:+$problem, then }the time limit for all files was reached"; return 1; fi
        hopeless=''
        ! "$@" || return 0
        _now
        if [ -n "$hopeless" ] || [ "$tries" -ge "$most" ] || [ $((now_ms + pause * 1000)) -ge "$deadline" ]; then return 1; fi
        _log "$phase: $problem; again in $pause s"
        _sleep "$pause.$((RANDOM % 10))"
        tries=$((tries + 1)) pause=$((pause * 2))
    done
}

_heard() {  # COMMAND...: what may take the time that is left -> problem: the first words of its stderr; hopeless
    local status=0
    problem='' hopeless=''
    _left
    _run "$left" "$@" > /dev/null 2> "$control/words" || status=$?
    [ "$status" != 0 ] || return 0
    read -r problem < "$control/words" || :
    [ -n "$problem" ] || problem="failed ($status)"
    [ "$status" != 137 ] || problem="no end within $left s"  # bash may have written "Killed" into the words
    # what the system, XRootD, or HTTP says when it is no matter of the moment, after the names
    [[ ! ${problem##*[:;\']} =~ directory|ermission|denied|o\ space|uota|ead-only|isallowed|plain\ file|o\ protocols|ot\ found|xists|(^\ (4[01]|507)) ]] || hopeless=yes
    return 1
}

_xrd() {  # COMMAND...; in a child. A dead server must not hold the job for ten minutes
    export XRD_CONNECTIONWINDOW=15 XRD_CONNECTIONRETRY=1 XRD_REQUESTTIMEOUT=120 XRD_STREAMTIMEOUT=60 XRD_TIMEOUTRESOLUTION=5
    [ ${#secret[@]} = 0 ] || _export_secrets
    exec "$@"
}

_stage_in() {
    local i k end problems
    [ ${#in_name[@]} != 0 ] || return 0
    _phase stage_in
    _set_deadline limit.stage_in
    end=$deadline
    for i in "${!in_name[@]}"; do
        problems=''
        set --
        for k in "${!in_source[@]}"; do [ "${in_source_of[k]}" != "$i" ] || set -- "$@" "${in_source[k]}"; done
        while [ $# != 0 ]; do
            _now
            deadline=$((now_ms + (end - now_ms) / $#))  # a source that hangs leaves time for those after it
            ! _stage_input "$i" "$1" || break
            _log "stage-in: ${in_name[i]} from $1: $problem"
            problems+="${problems:+; }$1: $problem"
            shift
        done
        [ $# != 0 ] || _end_or_full "$STAGE_IN" "input ${in_name[i]}: ${problems:-it has no source}"
    done
    deadline=0
}

_stage_input() {  # INDEX SOURCE -> problem
    local to=$work/${in_name[$1]} began=$now_ms size='' verified=''
    if ! _retry _bring_input "$1" "$2" "$to.part" || ! _heard mv -fT -- "$to.part" "$to"; then
        ! _scratch_is_full || _finish "$SCRATCH_FULL" "scratch is full ($scratch) with input ${in_name[$1]}: $problem"
        rm -f -- "$to.part" "$to.part.head" "$to.part.url"
        return 1
    fi
    rm -f -- "$to.part.head" "$to.part.url"
    [[ $2 != http* ]] || tries=$fetch_tries
    _now
    _seconds $((now_ms - began))
    _object name "${in_name[$1]}" source "$2" @bytes "$size" sha256 "${answer[0]}" @seconds "$seconds" @verified "[$verified]" @tries "$tries"
    json_inputs+=${json_inputs:+, }$object
}

_bring_input() {  # INDEX SOURCE FILE -> problem, hopeless
    [[ ${in_name[$1]} != */* ]] || _heard mkdir -p -- "${3%/*}" || return 1
    rm -f -- "$3"
    _bring "$2" "$3" || return 1
    hopeless=yes
    _check_input "$1" "$3"
}

_bring() {  # SOURCE FILE -> problem, hopeless
    local path=$1 most woken=()
    case $1 in
        http://* | https://*)
            _get most stage.tries 3
            _fetch "$1" "$2" "$deadline" "$most" "$most" || hopeless=yes problem=$fetch_result
            [ -z "$hopeless" ] && { [ -e "$2" ] || : > "$2"; } ;;  # old curl makes no empty file
        root://* | xroot://*)
            command -v xrdcp > /dev/null || { hopeless=yes problem="there is no xrdcp"; return 1; }
            _heard _xrd xrdcp --nopbar --force "$1" "$2" ;;
        /* | file:///* | file://localhost/*)
            path=${path#file://localhost} path=${path#file://}
            [ "$path" = "$1" ] || { path=${path//\\/\\\\}; printf -v path '%b' "${path//%/\\x}"; }
            _wake_all "$path"
            [ "${woken[0]}" = there ] || { hopeless=yes problem="${woken[0]/#missing/not there}"; return 1; }
            _heard _copy "$path" "$2" ;;
        LFN:*) _bring "$scratch/${1##*/}" "$2" ;;  # DIRAC has brought it
        *) hopeless=yes problem="no way to fetch this kind of source"; return 1 ;;
    esac
}

_copy() {  # FILE COPY; in a child
    local before after
    [ -f "$1" ] || { echo "is no plain file" >&2; return 1; }
    before=$(stat -L -c '%i %s %y' -- "$1") && cp -- "$1" "$2" && after=$(stat -L -c '%i %s %y' -- "$1") || return 1
    [ "$before" = "$after" ] || { echo "it changed while it was copied" >&2; return 1; }
}

_check_input() {  # INDEX FILE -> size, answer (its digest), verified, problem
    local adler=''
    verified=''
    _size "$2"
    _is_wanted bytes "$size" "${in_bytes[$1]}" || return 1
    [ -z "${in_adler[$1]}" ] || _adler32 "$2"
    [ -z "$adler" ] || _is_wanted adler32 "$adler" "${in_adler[$1]}" || return 1
    _sha256 "$2"
    _is_wanted sha256 "${answer[0]}" "${in_sha[$1]}"
}

_is_wanted() {  # WHAT FOUND WANTED -> verified, problem
    [ -n "$3" ] || return 0
    [ "$2" = "$3" ] || { problem="$1 $2, not $3"; return 1; }
    verified+="${verified:+, }\"$1\""
}
