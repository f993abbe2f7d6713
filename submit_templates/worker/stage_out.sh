# shellcheck shell=bash
# The declared outputs, to where the site wants them; and the core files of a payload that failed.

out_path=() out_bytes=() out_sha=() out_file=() out_part=() out_result=()

_stage_out() {
    local i
    _phase stage_out
    if _ending_signal; then _finish $((128 + ending)) "ended by signal ${signals[*]} before stage-out"; fi
    [ ${#out_name[@]} -gt 0 ] || return 0
    _set_deadline limit.stage_out
    _check_outputs
    case ${set_of[output.kind]} in
        transfer) _move_outputs ;;
        posix) _publish_outputs ;;
        *) _publish_remote ;;
    esac
    deadline=0
    for i in "${!out_name[@]}"; do _log "output ${out_name[i]}: ${out_result[i]}, ${out_bytes[i]} bytes, ${out_file[i]}"; done
}

_check_outputs() {  # -> out_bytes, out_sha
    local i path real home sizes=() paths=()
    home=$(readlink -f -- "$work")
    for i in "${!out_name[@]}"; do
        path=$work/${out_name[i]}
        if [ -L "$path" ]; then
            real=$(readlink -f -- "$path") || real=''
            [[ $real == "$home"/* ]] || _finish "$NO_OUTPUT" "output ${out_name[i]} is a link that leads out of the working folder"
            path=$real
        fi
        [ -e "$path" ] || _finish_or_full "$NO_OUTPUT" "declared output ${out_name[i]} is missing"
        [ -f "$path" ] || _finish "$NO_OUTPUT" "declared output ${out_name[i]} is not a plain file"
        paths+=("$path")
    done
    mapfile -t sizes < <(stat -c %s -- "${paths[@]}")
    _sha256 "${paths[@]}"
    for i in "${!out_name[@]}"; do
        if [ -z "${answer[i]}" ] || [ -z "${sizes[i]:-}" ]; then _finish "$NO_OUTPUT" "output ${out_name[i]} cannot be read"; fi
        out_path[i]=${paths[i]} out_bytes[i]=${sizes[i]} out_sha[i]=${answer[i]} out_result[i]=ours
    done
}

_move_outputs() {
    local i
    for i in "${!out_name[@]}"; do
        out_file[i]=$job.$i.$attempt
        _heard mv -- "${out_path[i]}" "$scratch/out/${out_file[i]}" ||
            _finish_or_full "$STAGE_OUT" "output ${out_name[i]} cannot be moved to out/: $problem"
    done
}

_name_outputs() {  # -> out_file, out_part: where they go, and their names until all are there
    local i name
    for i in "${!out_name[@]}"; do
        name=${set_of[output.root]}/${out_to[i]}
        out_file[i]=$name out_part[i]=${name%/*}/.${name##*/}.$attempt.part
    done
}

_put_all() {  # COMMAND that puts INDEX
    local i
    for i in "${!out_name[@]}"; do
        parts+=("${out_part[i]}")
        _retry "$1" "$i" || _finish "$STAGE_OUT" "output ${out_name[i]} cannot be written to ${out_file[i]%/*}: $problem"
    done
}

_publish_outputs() {
    _name_outputs
    _wake_all "${set_of[output.root]}"
    [ "${woken[0]}" != hanging ] || _finish "$STAGE_OUT" "${set_of[output.root]} does not answer on $HOSTNAME"
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

_finish_mixture() {  # THERE MISSING COMMAND
    _finish "$STAGE_OUT" "some outputs are there from another attempt, with other content or under names that cannot be linked, and" \
        "$2 is not. Nothing was overwritten. When no other attempt of $job runs: $3$1, then run the job again; or roll back"
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

_wipe_parts() {
    [ ${#parts[@]} != 0 ] || return 0
    case ${set_of[output.kind]} in
        posix) _ask 10 rm -f -- "${parts[@]}" || : ;;
        *) _wipe_remote ;;
    esac
    parts=()
}

_keep_cores() {  # of a payload that failed, to out/, which comes back -> json_cores
    local file name magic size room k=0
    _get room cores.limit 0
    for file in "$work"/core "$work"/core.*; do
        [ -f "$file" ] && [ ! -L "$file" ] && IFS= read -r -n 4 magic < "$file" && [ "$magic" = $'\x7fELF' ] || continue
        _size "$file"
        if [ "$size" -gt "$room" ]; then _log "core file ${file##*/}, $size bytes: not kept, there is room for $room"; continue; fi
        name=$job.core.$k.$attempt
        mv -- "$file" "$scratch/out/$name" || continue
        k=$((k + 1)) room=$((room - size))
        _object file "$name" @bytes "$size"
        json_cores+=${json_cores:+, }$object
    done
}
