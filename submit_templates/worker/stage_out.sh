# shellcheck shell=bash
# The declared outputs, to where the site wants them; and the core files of a payload that failed.

out_path=() out_bytes=() out_sha=() out_file=() out_part=() out_result=()

_stage_out() {
    local i
    _phase stage_out
    if _ending_signal; then _finish $((128 + ending)) "ended by signal $ends before stage-out"; fi
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
        [ -e "$path" ] || _end_or_full "$NO_OUTPUT" "declared output ${out_name[i]} is missing"
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
            _end_or_full "$STAGE_OUT" "output ${out_name[i]} cannot be moved to out/: $problem"
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
        if [ "$size" -gt "$room" ]; then _log "core file ${file##*/}, $size bytes: not kept, room for $room"; continue; fi
        name=$job.core.$k.$attempt
        mv -- "$file" "$scratch/out/$name" || continue
        k=$((k + 1)) room=$((room - size))
        _object file "$name" @bytes "$size"
        json_cores+=${json_cores:+, }$object
    done
}
