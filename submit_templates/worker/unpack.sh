# shellcheck shell=bash
# Images that are folders, for batches whose URLs lead to tar files of them.

_unpack() {  # FILE: the tar file becomes that folder
    _ask 0 _count_tar || :
    image_bytes=${answer[0]:-0}
    if [ "$image_bytes" != 0 ]; then
        [ "${1%/*}" != "$cache_dir" ] || _make_room "$image_bytes" || return 1
        rm -rf -- "$1" "$1.new"
        { mkdir -- "$1.new" && _run 0 tar -x --no-same-owner -f "$part" -C "$1.new" && chmod -R u+rwX -- "$1.new"; } || return 1
        _ask 0 _probe_image "$1.new" "${set_of[image.marker]:-}" || :
        if [ "${answer[0]:-}" = ok ]; then rm -f -- "$part"*; mv -T -- "$1.new" "$1"; return; fi
        rm -rf -- "$1.new"
    fi
    fetch_result="damaged: ${answer[1]:-no tar file of folders and files}" fetch_damage=damaged
    rm -f -- "$part"*
    return 1
}

_count_tar() {  # -> the bytes that it unpacks to, about; nothing when it holds devices, or is no tar file
    local mode bytes total=0
    while read -r mode _ bytes _; do
        [[ $mode == [-dlh]* && $bytes =~ $NUMBER ]] || return
        total=$((total + bytes + 4096))
    done < <(tar -tv --numeric-owner -f "$part")
    printf '%s\n' "$total"
}
