# shellcheck shell=bash
# Outputs that go to their final names from the node: what the ways to do so (stage_posix.sh, stage_remote.sh) share.

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

_finish_mixture() {  # THERE MISSING COMMAND
    _finish "$STAGE_OUT" "some outputs are there from another attempt, with other content or under names that cannot be linked, and" \
        "$2 is not. Nothing was overwritten. When no other attempt of $job runs: $3$1, then run the job again; or roll back"
}
