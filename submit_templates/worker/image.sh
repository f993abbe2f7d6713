# shellcheck shell=bash
# The image ladder: the paths, the node's cache (cache.sh), HTTP, a registry (registry.sh); the first that serves a whole image wins.

climbed=0 damaged=0 others=0 broken='' result=''  # rungs tried so far; of their sources, how many were damaged or out of reach

_climb_ladder() {  # -> image, a folder or file that the runtime can start; 82, 83, 91
    ! _climb || return 0
    [ -z "$refusal" ] || _end_or_full "$refusal_code" "$refusal; and there is no other source of it"
    [ -z "$broken" ] || _finish "$CVMFS_BROKEN" "CVMFS is broken on $HOSTNAME ($broken), and no other source has the image"
    [ "$damaged" = 0 ] || [ "$others" != 0 ] || _finish "$IMAGE_DAMAGED" "every source of the image ${set_of[image]} is damaged: $result"
    _end_or_full "$NO_IMAGE" "no source has the image ${set_of[image]} for $HOSTNAME"
}

_climb() {  # -> image, of the next rung that serves; called again, it goes on from there. False: no rung is left
    local began rung_began i count=${#image_paths[@]} ending=sif
    [ "${set_of[image.format]:-}" != directory ] || ending=dir
    _now
    began=$now_ms
    while [ "$climbed" -lt $((count + 3)) ]; do
        i=$climbed climbed=$((climbed + 1))
        _now
        rung_began=$now_ms
        # each rung says in `result` how it went, and in json_tried
        case $((i - count)) in
            0) [ -n "${set_of[node_cache]:-}" ] && _rung_cache ;;
            1) [ ${#image_urls[@]} != 0 ] && _from_origin _download "${set_of[image.sha256]}.$ending" ;;
            2) [ -n "${set_of[image.registry]:-}" ] && _rung_registry ;;
            *) _rung_path "${image_paths[i]}" ;;
        esac || continue
        _now
        _seconds $((now_ms - began))
        image_seconds=$seconds
        _log "image ${set_of[image]}: $rung, $image_source, $seconds s"
        return 0
    done
    return 1
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

_rung_path() {  # PATH
    local path=$1
    _ask_path "$path" _probe_image "$path" "${set_of[image.marker]:-}" || answer=(hanging)
    case ${answer[0]} in
        ok) _served path "$path" "$path"; return 0 ;;
        missing) _tried path "$path" absent ;;
        hanging) _tried path "$path" timeout ;;
        damaged) _tried path "$path" "damaged: ${answer[1]}" damaged ;;
        *) _tried path "$path" "broken: ${answer[0]}" ;;
    esac
    ! _is_broken "$path" "${answer[0]}" || broken="$path is ${answer[0]}"
    return 1
}

_probe_image() {  # PATH MARKER; runs in a child that may hang -> ok, missing or what is wrong; or damaged, and words
    local words found='' file=$1 damage=''
    _open "$1"
    if [ "$words" = there ] && [ -d "$1" ]; then
        file=$1$MARKER_FILE
        [ ! -r "$file" ] || IFS= read -r found < "$file" || :
        if [ ! -e "$1/bin/sh" ] && [ ! -L "$1/bin/sh" ] && [ ! -L "$1/bin" ]; then
            damage="the folder holds no image (no bin/sh)" file=$1
        elif [ -n "$2" ] && [ "$found" != "$2" ]; then
            damage="its marker is '$found', the catalogue says '$2'"
        fi
    elif [ "$words" = there ] && ! _sif_is_whole "$1"; then
        damage=$sif_problem
    fi
    if [ -n "$damage" ] && [ -f "$file" ]; then  # or is it that it cannot be read?
        words=$(head -c 200 -- "$file" 2>&1 > /dev/null)
        [ -n "$words" ] || words=there
    fi
    if [ "$words" != there ]; then printf '%s\n' "${words##*: }"
    elif [ -n "$damage" ]; then printf 'damaged\n%s\n' "$damage"
    else printf 'ok\n'; fi
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
