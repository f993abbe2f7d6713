# shellcheck shell=bash
# Outputs to a folder of the site's file system.

_publish_outputs() {
    _name_outputs
    _wake_all "${set_of[output.root]}"
    # It is not made: where it is missing it is not mounted, or HTCondor shows the job a folder of its own in its place
    [ "${woken[0]}" = there ] || _finish "$STAGE_OUT" "output.root ${set_of[output.root]} is ${woken[0]} on $HOSTNAME"
    _put_all _put
    _link_outputs || _use_earlier
    if [ "$start" != 1 ] || [ "${set_of[generation]}" != 0 ]; then _sweep_parts; fi
    _wipe_parts
}

_put() {  # INDEX -> problem, hopeless
    _heard mkdir -p -- "${out_part[$1]%/*}" || return 1
    # dd, because it can wait until the data is on disk, and tells when it does not get there
    _heard dd if="${out_path[$1]}" of="${out_part[$1]}" bs=4M conv=fsync || return 1
    _sha256 "${out_part[$1]}"
    [ "${answer[0]}" = "${out_sha[$1]}" ] || { problem="arrived damaged"; return 1; }
}

# All or nothing. The names are linked in order, so of two attempts at once one wins the first name and goes on, and the
# other stops there; an attempt that meets foreign content takes back its own names.
_link_outputs() {  # false: another attempt's outputs are there
    local i k linked=() status=0
    for i in "${!out_file[@]}"; do
        [ -e "${out_file[i]}" ] || continue
        _sha256 "${out_file[i]}"
        [ "${answer[0]}" = "${out_sha[i]}" ] || return 1
    done
    critical+=.  # signals wait: half a set of outputs would be the end of the job
    for i in "${!out_name[@]}"; do
        if _link "${out_part[i]}" "${out_file[i]}"; then linked+=("$i"); continue; fi
        _sha256 "${out_file[i]}"
        if [ "${answer[0]}" = "${out_sha[i]}" ]; then out_result[i]=same; continue; fi
        for k in ${linked[@]+"${linked[@]}"}; do
            [ ! "${out_file[k]}" -ef "${out_part[k]}" ] || rm -f -- "${out_file[k]}"
        done
        status=1
        break
    done
    [ "$status" = 0 ] || _calm  # else all are there: the job is done, and no signal changes that
    return "$status"
}

_link() {  # PART FINAL; a file system without hard links renames, which is as good when the name is free
    _heard ln -T -- "$1" "$2" && return 0
    [ ! -e "$2" ] && [ ! -L "$2" ] || return 1
    [ -e "$1" ] && mv -nT -- "$1" "$2" 2> /dev/null && [ ! -e "$1" ] && cp -- "$2" "$1"
}

_use_earlier() {  # all outputs are there from another attempt: they are the job's. It may be in the middle of this very thing
    local i missing there quoted waited=0 sizes=()
    while :; do
        missing='' there=''
        for i in "${!out_file[@]}"; do
            if [ -e "${out_file[i]}" ] || [ -L "${out_file[i]}" ]; then
                _quote "${out_file[i]}"
                there+=" $quoted"
            else
                missing=${out_file[i]}
            fi
        done
        [ -n "$missing" ] || break
        ! _complete_earlier || continue
        waited=$((waited + 1))
        [ "$waited" -le "${FERMIGRID_RIVAL_WAIT:-20}" ] || _finish_mixture "$there" "$missing" "rm --"
        _sleep 0.5
    done
    _sha256 "${out_file[@]}"
    mapfile -t sizes < <(stat -L -c %s -- "${out_file[@]}")
    for i in "${!out_name[@]}"; do
        [ -n "${answer[i]}" ] || _finish "$STAGE_OUT" "${out_file[i]} is there from another attempt and cannot be read"
        out_bytes[i]=${sizes[i]:-0} out_sha[i]=${answer[i]} out_result[i]=earlier
    done
}

# An attempt begins to link when all its parts are whole. So where one has died on the way, or is slow, any other can go on for it.
_complete_earlier() {  # true: it has
    local i part name rival=''
    for i in "${!out_file[@]}"; do
        name=${out_part[i]%"$attempt.part"}
        for part in "$name"g*.part; do
            [ ! "$part" -ef "${out_file[i]}" ] || rival=${part#"$name"}
        done
    done
    [ -n "$rival" ] || return 1
    for i in "${!out_file[@]}"; do
        part=${out_part[i]%"$attempt.part"}$rival
        [ -e "${out_file[i]}" ] || ln -T -- "$part" "${out_file[i]}" 2> /dev/null || return 1
    done
    _log "the outputs of the attempt ${rival%.part} were linked for it"
}

_sweep_parts() {  # what attempts that were killed more than a day ago have left of these outputs
    local i part
    touch -d '1 day ago' -- "$control/day" || return 0
    for i in "${!out_part[@]}"; do
        for part in "${out_part[i]%"$attempt.part"}"g*.part; do [ ! "$part" -ot "$control/day" ] || parts+=("$part"); done
    done
}
