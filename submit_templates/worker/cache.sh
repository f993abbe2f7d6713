# shellcheck shell=bash
# The node's image cache, for batches of a site that has one: <sha256>.sif, and <sha256>.sif.stamp with "<size> <mtime>" from
# when its digest was taken.

_open_cache() {  # -> cache_dir, private to this user; empty when there is none
    local base=${set_of[node_cache]:-} limit
    cache_dir=''
    [ -n "$base" ] && [ -n "${set_of[image.sha256]:-}" ] || return 1
    _get limit limit.path 30
    if _ask "$limit" _make_cache "$base/u$EUID" && [ "${answer[0]:-}" = ok ]; then
        cache_dir=$base/u$EUID
    else
        _log "node cache $base cannot be used: ${answer[0]:-no answer within $limit s}"
        return 1
    fi
}

_make_cache() {  # FOLDER; runs in a child that may hang
    ( umask 022; mkdir -p -- "${1%/*}"; mkdir -m 700 -- "$1" ) > /dev/null 2>&1 || :
    if [ -L "$1" ] || [ ! -O "$1" ]; then printf 'it is not a folder of this user\n'; return; fi
    [ "$(stat -c %a -- "$1")" = 700 ] || chmod 700 -- "$1"
    if [ -w "$1" ]; then printf 'ok\n'; else printf 'it is not writable\n'; fi
}

_rung_cache() {
    local file stamp now=''
    _open_cache || return 1
    _now
    rung_began=$now_ms
    file=$cache_dir/${set_of[image.sha256]}.sif
    if [ ! -e "$file" ] || ! _hold "$file"; then _tried cache "$file" absent; return 1; fi
    stamp=''
    read -r stamp 2> /dev/null < "$file.stamp" || :
    now=$(stat -L -c '%s %Y' -- "$file" 2> /dev/null) || :
    if [ "$stamp" != "$now" ]; then
        _log "the cached image does not fit its stamp: its digest is taken again"
        _sha256 "$file"
        if [ "${answer[0]}" != "${set_of[image.sha256]}" ]; then
            rm -f -- "$file" "$file.stamp"
            _tried cache "$file" "damaged: sha256 ${answer[0]}" damaged
            return 1
        fi
        _write_stamp "$file"
    fi
    touch -- "$file.stamp" 2> /dev/null || :  # the stamp's own time: when the image was last used
    image_bytes=${now%% *}
    _served cache "$file" "$file"
}

_hold() {  # FILE: a shared lock as long as this worker lives, so that nobody makes room with it
    [ -z "$cache_fd" ] || exec {cache_fd}<&-
    { exec {cache_fd}< "$1"; } 2> /dev/null || { cache_fd=''; return 1; }
    ! command -v flock > /dev/null || flock -s -n "$cache_fd" || return 1
    [ "$1" -ef "/dev/fd/$cache_fd" ]  # still there under its name
}

_write_stamp() { stat -L -c '%s %Y' -- "$1" > "$1.new.$$" && mv -f -- "$1.new.$$" "$1.stamp"; }  # FILE

_lock_cache() {  # SECONDS: one download on a node at a time; the lock ends with the process, however that dies
    local waited=0
    if command -v flock > /dev/null; then
        { exec {lock_fd}>> "$cache_dir/lock"; } 2> /dev/null || { lock_fd=''; return 1; }
        _run "$1" flock "$lock_fd"
        return
    fi
    while ! mkdir -- "$cache_dir/lock.d" 2> /dev/null; do
        [ -z "$(find "$cache_dir/lock.d" -maxdepth 0 -mmin +$(($1 / 60 + 2)) 2> /dev/null)" ] || rmdir -- "$cache_dir/lock.d" || :
        waited=$((waited + 1))
        [ "$waited" -le "$1" ] || return 1
        _sleep 1
    done
    lock_dir=$cache_dir/lock.d
}

_make_room() {  # BYTES: evicts images, least recently used first, never one in use; false when that is not enough
    local need=$1 limit total=0 bytes name oldest
    local -A held=()
    _get limit node_cache.limit 0
    [ "$limit" != 0 ] || return 0
    [ "$need" -le "$limit" ] || return 1
    while :; do
        total=0 oldest=''
        for name in "$cache_dir"/*.sif "$cache_dir"/*.part; do
            [ "$name" != "$cache_dir/${set_of[image.sha256]}.part" ] || continue
            bytes=$(stat -c %s -- "$name" 2> /dev/null) || continue
            total=$((total + bytes))
            [ -z "${held[$name]:-}" ] || continue
            if [ -z "$oldest" ] || [ "$name.stamp" -ot "$oldest.stamp" ]; then oldest=$name; fi
        done
        [ $((total + need)) -gt "$limit" ] || return 0
        [ -n "$oldest" ] || return 1
        if _in_use "$oldest"; then
            held[$oldest]=yes
        else
            _log "node cache: ${oldest##*/} makes room"
            rm -f -- "$oldest" "$oldest.stamp" "$oldest.head" "$oldest.url"
        fi
    done
}

_in_use() {  # FILE; without flock: whatever was used within a week
    local fd free=yes
    if command -v flock > /dev/null; then
        { exec {fd}< "$1"; } 2> /dev/null || return 1
        flock -x -n "$fd" || free=no
        exec {fd}<&-
    else
        [ -z "$(find "$1.stamp" -mmin -10080 2> /dev/null)" ] || free=no
    fi
    [ "$free" = no ]
}
