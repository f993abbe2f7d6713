# shellcheck shell=bash
# The node's image cache, for batches of a site that has one. NAME.sif or NAME.dir, where NAME is a digest: of the file behind
# the URLs, or the registry's. NAME.sif.UID.stamp says how the file was when this user last took its digest (for a folder: its
# bytes), and by its own time when he last used it. NAME.sif.UID.part is on its way.

STATE='%s %i %z'  # of a file: nobody can change it, and leave the time of its inode

_open_cache() {  # -> cache_dir; empty when there is none
    local base=${set_of[node_cache]:-} folder=${set_of[node_cache]:-}/u$EUID mode=700 limit
    cache_dir=''
    [ -n "$base" ] && [ -n "${set_of[image.sha256]:-}${set_of[image.registry]:-}" ] || return 1
    # what others own is checked by its digest before it is used, and a folder has none
    [ "${set_of[node_cache.shared]:-}" != yes ] || [ "$ending" = dir ] || folder=$base/shared mode=1777
    _get limit limit.path 30
    if _ask "$limit" _make_cache "$folder" "$mode" && [ "${answer[0]:-}" = ok ]; then
        cache_dir=$folder
    else
        _log "node cache $base cannot be used: ${answer[0]:-no answer within $limit s}"
        return 1
    fi
}

_make_cache() {  # FOLDER MODE; runs in a child that may hang
    [ -d "$1" ] || ( umask 022; mkdir -p -- "${1%/*/*}"; mkdir -m 1777 -- "${1%/*}"; mkdir -m "$2" -- "$1" ) > /dev/null 2>&1 || :
    if [ ! -L "$1" ] && { [ "$2" = 1777 ] || [ -O "$1" ]; } && [ -w "$1" ] && { [ "$(stat -c %a -- "$1")" = "$2" ] || chmod "$2" -- "$1"; }; then
        printf 'ok\n'
    else
        printf 'it is not a folder of this user with mode %s\n' "$2"
    fi
}

_rung_cache() {
    local file status=0
    _open_cache || return 1
    file=$cache_dir/${set_of[image.sha256]:-}.$ending
    [ -n "${set_of[image.sha256]:-}" ] || file=$cache_dir/${set_of[image.registry]##*:}.sif
    _now
    rung_began=$now_ms
    _use_cached "$file" || status=$?
    [ "$status" != 2 ] || _tried cache "$file" absent
    return "$status"
}

_use_cached() {  # FILE -> image; 2: it is not there
    local stamp='' state name=${1##*/}
    { [ -f "$1" ] || [ -d "$1" ]; } && [ ! -L "$1" ] && _hold "$1" || return 2
    [ ! -O "$1.$EUID.stamp" ] || read -r stamp 2> /dev/null < "$1.$EUID.stamp" || :
    if [ -d "$1" ]; then state=$stamp; else state=$(exec stat -c "$STATE" -- "$1" 2> /dev/null) || :; fi
    [ -n "$state" ] || return 2
    if [ "$stamp" != "$state" ]; then
        _log "the cached image does not fit its stamp: its digest is taken again"
        _sha256 "$1"
        if [ "${answer[0]}" != "${name%%.*}" ]; then
            [ ! "$1" -ef "/dev/fd/$cache_fd" ] || rm -f -- "$1" "$1.$EUID.stamp"  # not what has come in its place meanwhile
            _tried cache "$1" "damaged: sha256 ${answer[0]}" damaged
            return 1
        fi
        _write_stamp "$1"
    fi
    printf '\n' 2> /dev/null >> "$1.$EUID.stamp" || :  # gives it the time of this use
    image_bytes=${state%% *}
    _served cache "$1" "$1"
}

_hold() {  # FILE: a shared lock as long as this worker lives, so that nobody makes room with it
    [ -z "$cache_fd" ] || exec {cache_fd}<&-
    { exec {cache_fd}< "$1"; } 2> /dev/null || { cache_fd=''; return 1; }
    ! command -v flock > /dev/null || flock -s -n "$cache_fd" || return 1
    [ "$1" -ef "/dev/fd/$cache_fd" ]  # still there under its name
}

_write_stamp() { if [ -d "$1" ]; then printf '%s\n' "$image_bytes"; else stat -c "$STATE" -- "$1"; fi 2> /dev/null > "$1.$EUID.stamp"; }  # FILE

_into_cache() {  # FUNCTION NAME: one download on a node at a time. 2: not into the cache
    local file=$cache_dir/$2 why='' status=0
    _lock_cache "$limit" "$file" || why="no lock within $limit s"
    if _use_cached "$file"; then  # another job has fetched it meanwhile
        why=''
    elif [ -z "$why" ]; then
        if ! _make_room "${set_of[image.size]:-0}"; then
            why="no room within its limit"
        elif ! _bring_image "$1" "$file"; then
            status=1
            [[ $fetch_result != cannot* ]] || { why=$fetch_result; rm -rf -- "$file.$EUID.part"* "$file.new"; }
        fi
    fi
    _unlock_cache
    [ -n "$why" ] || return "$status"
    _log "node cache: $why; the image is fetched for this job alone"
    return 2
}

_lock_cache() {  # SECONDS FILE; false when the lock does not come, or FILE does. It ends with the process, however that dies
    local end left
    _now
    end=$((now_ms + $1 * 1000))
    if ! command -v flock > /dev/null; then _lock_by_name "$@"; return; fi
    exec {lock_fd}< "$cache_dir"
    until flock -x -n "$lock_fd"; do
        [ $? = 1 ] && _now && left=$(((end - now_ms + 999) / 1000)) && [ "$left" -gt 0 ] || { _unlock_cache; return 1; }
        _ask 0 _wait_for_lock "$left" || :
        [ ! -e "$2" ] || { _unlock_cache; return 1; }
        _sleep "0.$RANDOM"
    done
}

_wait_for_lock() { flock -s -w "$1" 9 9< "$cache_dir"; }  # SECONDS; a shared one: all who wait are woken at once

_lock_by_name() {  # without flock: a link that says whose it is; one of a dead process, or too old, is removed
    local space held
    space=$(readlink /proc/self/ns/pid) || :
    until ln -s -- "$$ $space" "$cache_dir/lock" 2> /dev/null; do
        held=$(readlink -- "$cache_dir/lock") || :
        if { [ "${held#* }" = "$space" ] && [ ! -d "/proc/${held%% *}" ]; } ||
            [ -n "$(find "$cache_dir/lock" -mmin +$(($1 / 60 + 2)) 2> /dev/null)" ]; then
            rm -f -- "$cache_dir/lock" "$2.$EUID.part"*  # its download may still go on
        fi
        _now
        [ ! -e "$2" ] && [ "$now_ms" -lt "$end" ] || return 1
        _sleep "0.$RANDOM"
    done
    lock_link=$cache_dir/lock
}

_unlock_cache() {
    [ -z "$lock_fd" ] || exec {lock_fd}<&-
    [ -z "$lock_link" ] || rm -f -- "$lock_link"
    lock_fd='' lock_link=''
}

_make_room() {  # BYTES: removes images of this user, the least recently used first, none in use; false when that is not enough
    local limit total bytes name stamp used oldest since looked=' '
    _get limit node_cache.limit 0
    rm -rf -- "$cache_dir"/*.new
    [ "$limit" != 0 ] || return 0
    [ "$1" -le "$limit" ] || return 1
    while :; do
        total=0 oldest=''
        for name in "$cache_dir"/*.sif "$cache_dir"/*.dir "$cache_dir"/*.part; do
            [ -e "$name" ] && [ "$name" != "$file.$EUID.part" ] || continue
            if [ -d "$name" ]; then read -r bytes < "$name.$EUID.stamp"; else bytes=$(stat -c %s -- "$name"); fi 2> /dev/null || bytes=0
            total=$((total + bytes))
            [ -O "$name" ] && [[ $looked != *" $name "* ]] || continue
            used=$name.$EUID.stamp
            for stamp in "$name".*.stamp; do [ ! "$stamp" -nt "$used" ] || used=$stamp; done
            if [ -z "$oldest" ] || [ "$used" -ot "$since" ]; then oldest=$name since=$used; fi
        done
        [ $((total + $1)) -gt "$limit" ] || return 0
        [ -n "$oldest" ] || return 1
        looked+="$oldest "
        _evict "$oldest" "$since"
    done
}

_evict() {  # FILE STAMP: unless it is in use; without flock: unless it was within a week
    local fd='' free=yes
    if command -v flock > /dev/null; then
        { exec {fd}< "$1"; } 2> /dev/null || return 0
        flock -x -n "$fd" || free=no
    else
        [ -z "$(find "$2" -mmin -10080 2> /dev/null)" ] || free=no
    fi
    if [ "$free" = yes ]; then
        _log "node cache: ${1##*/} makes room"
        mv -T -- "$1" "$1.new" && rm -rf -- "$1.new" "$1".* || :
    fi
    [ -z "$fd" ] || exec {fd}<&-
}
