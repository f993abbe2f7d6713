# shellcheck shell=bash
# The image ladder: the path, the node's cache (cache.sh), HTTP, a registry; the first that serves a whole image wins.

_climb_ladder() {  # -> image, a folder or file that the runtime can start; 82, 83, 91
    local began damaged=0 others=0 broken='' result rung_began
    _now
    began=$now_ms
    # each rung says in `result` how it went, and in json_tried
    if _rung_path || { [ -n "${set_of[node_cache]:-}" ] && _rung_cache; } || _rung_http || _rung_registry; then
        _now
        _seconds $((now_ms - began))
        image_seconds=$seconds
        _log "image ${set_of[image]}: $rung, $image_source, $seconds s"
        return 0
    fi
    [ -z "$broken" ] || _finish "$CVMFS_BROKEN" "CVMFS is broken on $HOSTNAME ($broken), and no other source has the image"
    [ "$damaged" = 0 ] || [ "$others" != 0 ] || _finish "$IMAGE_DAMAGED" "every source of the image ${set_of[image]} is damaged: $result"
    _finish_or_full "$NO_IMAGE" "no source has the image ${set_of[image]} for $HOSTNAME"
}

_tried() {  # RUNG SOURCE RESULT [damaged]; the result of one try, since rung_began
    result=$3
    _now
    _seconds $((now_ms - rung_began))
    _object rung "$1" source "$2" result "$3" @seconds "$seconds"
    json_tried+=${json_tried:+, }$object
    if [ "${4:-}" = damaged ]; then damaged=$((damaged + 1)); elif [ "$3" != ok ] && [ "$3" != absent ]; then others=$((others + 1)); fi
    [ "$3" = ok ] || _log "image: $1: $2: $3"
    rung_began=$now_ms
}

_served() {  # RUNG SOURCE FILE
    rung=$1 image_source=$2 image=$3
    _tried "$1" "$2" ok
}

_rung_path() {
    local path=${set_of[image.path]:-} limit
    [ -n "$path" ] || return 1
    _get limit limit.path 30
    _now
    rung_began=$now_ms
    if ! _ask "$limit" _probe_image "$path" "${set_of[image.marker]:-}" || [ ${#answer[@]} = 0 ]; then
        [[ $path != /cvmfs/* ]] || broken="no answer from $path within $limit s"
        _tried path "$path" timeout
        return 1
    fi
    case ${answer[0]} in
        ok) _served path "$path" "$path"; return 0 ;;
        absent) _tried path "$path" absent ;;
        cvmfs) broken="${answer[1]:-}"; _tried path "$path" "broken: ${answer[1]:-}" ;;
        damaged) _tried path "$path" "damaged: ${answer[1]:-}" damaged ;;
        *) _tried path "$path" "broken: ${answer[1]:-}" ;;
    esac
    return 1
}

_probe_image() {  # PATH MARKER; runs in a child that may hang -> two lines: ok|absent|cvmfs|damaged|broken, and words
    local words found=''
    if ! words=$(ls -L -- "$1" 2>&1 > /dev/null); then
        case $words in
            *'ransport endpoint is not connected'*) printf 'cvmfs\n%s\n' "$words" ;;
            *'No such file'*) printf 'absent\n' ;;
            *) printf 'broken\n%s\n' "$words" ;;
        esac
    elif [ -d "$1" ]; then
        [ ! -r "$1$MARKER_FILE" ] || IFS= read -r found < "$1$MARKER_FILE" || :
        if [ ! -e "$1/bin/sh" ] && [ ! -L "$1/bin/sh" ] && [ ! -L "$1/bin" ]; then
            printf 'damaged\n%s\n' "the folder holds no image (no bin/sh)"
        elif [ -n "$2" ] && [ "$found" != "$2" ]; then
            printf 'damaged\n%s\n' "its marker is '$found', the catalogue says '$2'"
        else
            printf 'ok\n'
        fi
    elif _sif_is_whole "$1"; then
        printf 'ok\n'
    else
        printf 'damaged\n%s\n' "$sif_problem"
    fi
}

_sif_is_whole() {  # FILE -> sif_problem. A SIF has a 32-byte launch line, its magic word, and at 112 and 120 where its data lies
    local magic='' offset='' length='' size
    _size "$1"
    sif_problem="no SIF file"
    { IFS= read -r _; IFS= read -r -n 9 magic; } 2> /dev/null < "$1" || :
    [ "$magic" = SIF_MAGIC ] || return 1
    read -r offset length < <(od -A n -t d8 -j 112 -N 16 -- "$1") || :
    sif_problem="truncated: ${size:-0} bytes"
    [[ $offset =~ $NUMBER && $length =~ $NUMBER ]] && [ "${size:-0}" -ge $((offset + length)) ]
}

_rung_http() {
    local folder=$scratch/.image sha=${set_of[image.sha256]:-} limit file url deadline
    [ ${#image_urls[@]} -gt 0 ] || return 1
    _get limit limit.http 1800
    _now
    rung_began=$now_ms deadline=$((now_ms + limit * 1000))
    if [ -n "$cache_dir" ]; then
        if ! _lock_cache "$limit"; then
            _log "node cache: no lock within $limit s; the image is fetched for this job alone"
        elif [ -e "$cache_dir/$sha.sif" ] && _rung_cache; then
            _unlock_cache  # another job has fetched it meanwhile
            return 0
        elif _make_room "${set_of[image.size]:-0}"; then
            folder=$cache_dir
        else
            _log "node cache: no room within its limit; the image is fetched for this job alone"
        fi
    fi
    [ "$folder" = "$cache_dir" ] || { _unlock_cache; mkdir -p -- "$folder"; }
    file=$folder/$sha
    for url in "${image_urls[@]}"; do
        if _fetch "$url" "$file.part" "$deadline" && _check_download "$file.part" && _publish "$file"; then
            [ "$folder" != "$cache_dir" ] || _hold "$file.sif" || :
            _unlock_cache
            _served http "$url" "$file.sif"
            return 0
        fi
        _tried http "$url" "$fetch_result" "$fetch_damage"
    done
    _unlock_cache
    return 1
}

_unlock_cache() {
    [ -z "$lock_fd" ] || exec {lock_fd}>&-
    [ -z "$lock_dir" ] || rmdir -- "$lock_dir" 2> /dev/null || :
    lock_fd='' lock_dir=''
}

_check_download() {  # FILE -> fetch_result, fetch_damage; a wrong file is removed
    local want=${set_of[image.size]:-}
    _size "$1"
    image_bytes=${size:-0}
    fetch_damage=damaged
    if [ -n "$want" ] && [ "$size" != "$want" ]; then
        fetch_result="damaged: $size bytes, not $want"
    else
        _sha256 "$1"
        fetch_result="damaged: sha256 ${answer[0]}"
        if [ "${answer[0]}" = "${set_of[image.sha256]}" ]; then fetch_result=ok fetch_damage=''; return 0; fi
    fi
    rm -f -- "$1" "$1.head" "$1.url"
    return 1
}

_publish() {  # FILE: FILE.part, found good, gets its name
    if ! mv -f -- "$1.part" "$1.sif" || { [ "${1%/*}" = "$cache_dir" ] && ! _write_stamp "$1.sif"; }; then
        fetch_result="cannot be written" fetch_damage=''
        return 1
    fi
    rm -f -- "$1.part.head" "$1.part.url"
}

_rung_registry() {
    local reference=${set_of[image.registry]:-} limit file=$scratch/.image/pulled.sif status=0 size
    [ -n "$reference" ] || return 1
    _get limit limit.http 1800
    _now
    rung_began=$now_ms
    mkdir -p -- "$scratch/.image"
    _runtime_environment
    [ -z "${set_of[http_proxy]:-}" ] || runtime_env+=("http_proxy=${set_of[http_proxy]}" "https_proxy=${set_of[http_proxy]}")
    _run "$limit" env -i "${runtime_env[@]}" "$runtime" -q pull "$file" "$reference" >&2 || status=$?
    if [ "$status" != 0 ]; then _tried registry "$reference" "failed ($status)"; return 1; fi
    if ! _sif_is_whole "$file"; then _tried registry "$reference" "damaged: $sif_problem" damaged; return 1; fi
    _size "$file"
    image_bytes=$size
    _served registry "$reference" "$file"
}
