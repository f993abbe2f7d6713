# shellcheck shell=bash
# The bundle and the inputs, into the working folder.

_unpack_bundle() {
    [ -n "${set_of[code]:-}" ] || return 0
    _run 0 tar -xzf "$scratch/${set_of[code]}" -C "$work" --no-same-owner >&2 ||
        _finish_or_full "$INTERNAL" "the bundle ${set_of[code]} cannot be unpacked"
}

_stage_in() {
    local i k staged problems
    [ ${#in_name[@]} = 0 ] || _phase stage_in
    for i in "${!in_name[@]}"; do
        staged='' problems=''
        for k in "${!in_source[@]}"; do
            [ "${in_source_of[k]}" = "$i" ] || continue
            if _stage_input "$i" "${in_source[k]}"; then staged=yes; break; fi
            _log "stage-in: ${in_name[i]} from ${in_source[k]}: $in_problem"
            problems+="${problems:+; }${in_source[k]}: $in_problem"
        done
        [ -n "$staged" ] || _finish_or_full "$STAGE_IN" "input ${in_name[i]}: ${problems:-it has no source}"
    done
}

_stage_input() {  # INDEX SOURCE -> in_problem
    local to=$work/${in_name[$1]} size began
    _now
    began=$now_ms
    [[ ${in_name[$1]} != */* ]] || mkdir -p -- "${to%/*}"
    rm -f -- "$to.part"
    if ! _bring "$2" "$to.part" || ! _check_input "$1" "$to.part"; then
        ! _scratch_is_full || _finish "$SCRATCH_FULL" "scratch is full ($scratch) with input ${in_name[$1]}: $in_problem"
        rm -f -- "$to.part" "$to.part.head" "$to.part.url"
        return 1
    fi
    rm -f -- "$to.part.head" "$to.part.url"
    if ! mv -f -- "$to.part" "$to"; then in_problem="cannot be written"; return 1; fi
    _now
    _seconds $((now_ms - began))
    _object name "${in_name[$1]}" source "$2" @bytes "$size" sha256 "${answer[0]}" @seconds "$seconds"
    json_inputs+=${json_inputs:+, }$object
}

_bring() {  # SOURCE FILE -> in_problem
    local limit path=$1 status=0
    in_problem=''
    case $1 in
        http://* | https://*)
            _get limit limit.http 1800
            _now
            _fetch "$1" "$2" $((now_ms + limit * 1000)) || { in_problem=$fetch_result; return 1; } ;;
        root://* | xroot://*)
            command -v xrdcp > /dev/null || { in_problem="there is no xrdcp"; return 1; }
            _get limit limit.http 1800
            _run "$limit" _xrdcp "$1" "$2" >&2 || status=$?
            [ "$status" = 0 ] || { in_problem="xrdcp failed ($status)"; return 1; } ;;
        /* | file:///* | file://localhost/*)
            path=${path#file://localhost} path=${path#file://}
            [ "$path" = "$1" ] || { path=${path//\\/\\\\}; printf -v path '%b' "${path//%/\\x}"; }
            _get limit limit.path 30
            _ask "$limit" _wake "$path" || { in_problem="no answer within $limit s"; return 1; }
            [ "${answer[0]}" = there ] || { in_problem="not there"; return 1; }
            _run 0 cp -- "$path" "$2" >&2 || { in_problem="cannot be copied"; return 1; } ;;
        *) in_problem="no way to fetch this kind of source"; return 1 ;;
    esac
}

_xrdcp() {  # URL FILE; runs in a child. A dead server must not hold the job for ten minutes
    local i assignment
    export XRD_CONNECTIONWINDOW=30 XRD_CONNECTIONRETRY=2 XRD_REQUESTTIMEOUT=120 XRD_STREAMTIMEOUT=60 XRD_TIMEOUTRESOLUTION=5
    for assignment in ${secret_set[@]+"${secret_set[@]}"}; do export "${assignment%%=*}=${assignment#*=}"; done
    for i in "${!secret_point[@]}"; do
        export "${secret_point[i]%%=*}=$secret_dir/${secret[${secret_point_of[i]}]}/${secret_point[i]#*=}"
    done
    exec xrdcp --nopbar --force -- "$1" "$2"
}

_check_input() {  # INDEX FILE -> size, answer (its digest), in_problem
    local want
    _size "$2"
    want=${in_bytes[$1]}
    if [ -n "$want" ] && [ "$size" != "$want" ]; then in_problem="$size bytes, not $want"; return 1; fi
    want=${in_adler[$1]}
    if [ -n "$want" ]; then
        _adler32 "$2"
        if [ -z "$adler" ]; then
            _log "stage-in: the adler32 of ${in_name[$1]} is not checked: there is no tool for it"
        elif [ $((16#$adler)) != $((16#$want)) ]; then
            in_problem="adler32 $adler, not $want"
            return 1
        fi
    fi
    _sha256 "$2"
    want=${in_sha[$1]}
    if [ -n "$want" ] && [ "${answer[0]}" != "$want" ]; then in_problem="sha256 ${answer[0]}, not $want"; return 1; fi
}

_adler32() {  # FILE -> adler; empty without a tool
    local script='import sys, zlib
a = 1
for b in iter(lambda f=open(sys.argv[1], "rb"): f.read(1 << 20), b""): a = zlib.adler32(b, a)
print("%08x" % (a & 0xffffffff))'
    adler=''
    if command -v xrdadler32 > /dev/null; then _ask 0 xrdadler32 "$1" || :
    elif command -v python3 > /dev/null; then _ask 0 python3 -c "$script" "$1" || :
    else return 0; fi
    adler=${answer[0]:-} adler=${adler%% *}
    [[ $adler =~ ^[0-9a-f]{1,8}$ ]] || adler=''
}
