# shellcheck shell=bash
# The declared outputs, to where the site wants them.

out_path=() out_bytes=() out_sha=() out_file=() out_part=() out_result=()

_stage_out() {
    local i
    _phase stage_out
    if _ending_signal; then _finish $((128 + ending)) "ended by signal ${signals[*]} before stage-out"; fi
    [ ${#out_name[@]} -gt 0 ] || return 0
    _check_outputs
    case ${set_of[output.kind]} in
        transfer) _move_outputs ;;
        posix) _publish_outputs ;;
    esac
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
        _run 0 mv -- "${out_path[i]}" "$scratch/out/${out_file[i]}" >&2 ||
            _finish_or_full "$STAGE_OUT" "output ${out_name[i]} cannot be moved to out/"
    done
}

_publish_outputs() {
    local i root=${set_of[output.root]} folder words=''
    for i in "${!out_name[@]}"; do
        out_file[i]=$root/${out_to[i]}
        folder=${out_file[i]%/*}
        out_part[i]=$folder/.${out_to[i]##*/}.$attempt.part
        parts+=("${out_part[i]}")
        mkdir -p -- "$folder" >&2 || _finish "$STAGE_OUT" "folder $folder cannot be made"
        # dd, because it can wait until the data is on disk, and tells when it does not get there
        if ! _run 0 dd if="${out_path[i]}" of="${out_part[i]}" bs=4M conv=fsync 2> "$control/dd"; then
            read -r words < "$control/dd" || :
            _finish "$STAGE_OUT" "output ${out_name[i]} cannot be written to $folder: $words"
        fi
    done
    _sha256 "${out_part[@]}"
    for i in "${!out_name[@]}"; do
        [ "${answer[i]}" = "${out_sha[i]}" ] || _finish "$STAGE_OUT" "output ${out_name[i]} arrived damaged in $root"
    done
    _link_outputs || _use_earlier
    rm -f -- "${out_part[@]}"
    parts=()
}

# All or nothing. The names are linked in order, so of two attempts at once one wins the first name and goes on, and the
# other stops there; an attempt that meets foreign content takes back its own names.
_link_outputs() {  # false: another attempt's outputs are there
    local i k linked=() status=0
    critical=yes  # signals wait: half a set of outputs would be the end of the job
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
    critical=''
    if [ "$status" != 0 ] && [ -n "$deferred" ]; then _finish $((128 + deferred)) "ended by signal ${signals[*]} in phase stage_out"; fi
    return "$status"
}

_link() {  # PART FINAL; a file system without hard links renames, which is as good when the name is free
    ln -T -- "$1" "$2" 2> /dev/null && return 0
    [ ! -e "$2" ] && [ ! -L "$2" ] || return 1
    [ -e "$1" ] && mv -nT -- "$1" "$2" 2> /dev/null && [ ! -e "$1" ] && cp -- "$2" "$1"
}

_use_earlier() {  # all outputs are there from another attempt: they are the job's. It may be in the middle of this very thing
    local i missing='' waited=0 sizes=()
    while :; do
        missing=''
        for i in "${!out_file[@]}"; do [ -e "${out_file[i]}" ] || missing=${out_file[i]}; done
        [ -n "$missing" ] || break
        waited=$((waited + 1))
        if [ "$waited" -gt "${FERMIGRID_RIVAL_WAIT:-20}" ]; then
            _finish "$STAGE_OUT" "some outputs are there from another attempt, with other content or under names that cannot be" \
                "linked, and $missing is not: remove them, or roll back"
        fi
        _sleep 0.5
    done
    _sha256 "${out_file[@]}"
    mapfile -t sizes < <(stat -L -c %s -- "${out_file[@]}")
    for i in "${!out_name[@]}"; do
        [ -n "${answer[i]}" ] || _finish "$STAGE_OUT" "${out_file[i]} is there from another attempt and cannot be read"
        out_bytes[i]=${sizes[i]:-0} out_sha[i]=${answer[i]} out_result[i]=earlier
    done
}
