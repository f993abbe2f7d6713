# shellcheck shell=bash
# The image from an origin (HTTP, a registry), for batches that have one: into the node's cache, or for this job alone.

_from_origin() {  # FUNCTION NAME: into the cache, once for all jobs of the node; else for this job alone
    local limit jitter status=2
    _get limit limit.http 1800
    _get jitter jitter 0
    [ -z "$cache_dir" ] || { status=0; _into_cache "$@" || status=$?; }
    [ "$status" = 2 ] || return "$status"
    mkdir -p -- "$scratch/.image"
    _bring_image "$1" "$scratch/.image/$2"
}

_bring_image() {  # FUNCTION FILE: after a random wait, because all nodes of a campaign start at once
    local deadline part=$2.$EUID.part
    [ "$jitter" = 0 ] || [ -s "$part" ] || _sleep "$((RANDOM * jitter / 32768)).$((RANDOM % 10))"
    _now
    rung_began=$now_ms deadline=$((now_ms + limit * 1000))
    "$1" "$2"
}

_download() {  # FILE: from the mirrors, in order
    local url old tries=4 left=${#image_urls[@]}
    for url in "${image_urls[@]}"; do
        left=$((left - 1)) old=''
        [ "$left" != 0 ] || tries=9999  # the last one says when it has time for us
        [ ! -s "$part" ] || old=yes
        # a part that is complete is of a worker that was killed afterwards
        until { _size "$part"; [ "${size:-0}" = "${set_of[image.size]:-}" ] || _fetch "$url" "$part" "$deadline" "$tries"; } &&
            _check_download && _publish "$1"; do
            # what was there before may be the reason: once more, from the start
            if [ "$fetch_damage$old" = damagedyes ]; then old=''; continue; fi
            _tried http "$url" "$fetch_result" "$fetch_damage"
            [[ $fetch_result != cannot* ]] || return 1
            continue 2
        done
        _served http "$url" "$1"
        return 0
    done
    return 1
}

_check_download() {  # -> fetch_result, fetch_damage; a wrong file is removed
    local deadline=0  # what is here is looked at, however late it is
    _size "$part"
    image_bytes=${size:-0}
    _sha256 "$part"
    [ "${answer[0]}" != "${set_of[image.sha256]}" ] || return 0
    fetch_result="damaged: $image_bytes bytes, sha256 ${answer[0]}" fetch_damage=damaged
    rm -f -- "$part"*
    return 1
}

_publish() {  # FILE: what was brought, and found good, gets its name
    fetch_result="cannot be written" fetch_damage=''
    if [[ $1 == *.dir ]]; then
        _unpack "$1" || return 1
    else
        rm -f -- "$part".*  # before, so that a kill leaves none of them
        chmod 644 -- "$part" && mv -f -- "$part" "$1" || return 1
    fi
    [ "${1%/*}" != "$cache_dir" ] || { _write_stamp "$1" && _hold "$1"; }
}
