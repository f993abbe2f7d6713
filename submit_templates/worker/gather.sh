# shellcheck shell=bash
# Outputs of steps before this one. The lines after the job's row name them; there may be 50,000, so that files of this node are
# copied and checked by one child for all. Beside each folder a list of what is in it, and one of the pieces that are lost.

_gather() {
    local folders=() lines=() began folder files lost bytes
    _phase stage_in
    _need "$NUMBER" "$gathers" more
    [ "$gathers" = 0 ] || mapfile -t -s "$row_number" -n "$gathers" lines < "$scratch/$shard_file"
    [ ${#lines[@]} = "$gathers" ] || _bad "$shard_file has not all that row $row_number gathers"
    mapfile -t folders < <(exec sed -n 's/^gather=//p' "$scratch/job.env")
    _set_deadline limit.stage_in
    deadline=$((deadline - spent[stage_in]))
    for folder in "${folders[@]}"; do
        began=$now_ms files=0 lost=0 bytes=0
        _local_name "$folder" gather
        _list_gathered 5> "$work/$folder.csv" 6> "$work/$folder.missing.csv" 7> "$control/sums" 8> "$control/sources"
        _have_gathered || _end_or_full "$STAGE_IN" "$folder: $problem"
        _sha256 "$control/sums"
        _now
        _seconds $((now_ms - began))
        _object name "$folder" source gathered @files "$files" @lost "$lost" @bytes "$bytes" sha256 "${answer[0]}" @seconds "$seconds" \
            @verified '["sha256"]' @tries "$tries"
        json_inputs+=${json_inputs:+, }$object
    done
    deadline=0
}

_list_gathered() {  # the lists for the payload, the digests and the sources -> files, lost, bytes. A disk that is full ends the job
    local line field name from sha size piece first count
    printf 'piece,file,first_event,events\n' >&5
    printf 'piece,first_event,events\n' >&6
    for line in ${lines[@]+"${lines[@]}"}; do
        [[ ${line#*=} == "$folder"/* ]] || continue
        name='' from='' sha='' size=0
        while [ -n "$line" ]; do
            field=${line%%$'\t'*} line=${line#"$field"} line=${line#?}
            [[ $field != *\\* ]] || printf -v field '%b' "$field"
            case $field in
                in=*) name=${field#*=} ;;
                in.from=*) from=${field#*=} ;;
                in.bytes=*) size=${field#*=} ;;
                in.sha256=*) sha=${field#*=} ;;
                *.piece=*) piece=${field#*=} ;;
                *.first=*) first=${field#*=} ;;
                *.events=*) count=${field#*=} ;;
            esac
        done
        if [ -z "$name" ]; then
            lost=$((lost + 1))
            printf '%s,%s,%s\n' "$piece" "$first" "$count" >&6
            continue
        fi
        _local_name "$name" input
        _need "$NUMBER" "$size" in.bytes
        files=$((files + 1)) bytes=$((bytes + 10#$size))
        printf '%s,%s,%s,%s\n' "$piece" "$name" "$first" "$count" >&5
        [ -z "$sha" ] || printf '%s  %s\n' "$sha" "$name" >&7
        [[ $from == outputs:* ]] || printf '%s\t%s\n' "$name" "$from" >&8
    done
}

_have_gathered() {  # -> tries, problem
    tries=1
    if [ -d "$scratch/gathered/$folder" ]; then
        _heard mv -T -- "$scratch/gathered/$folder" "$work/$folder" || return 1
    else
        _heard mkdir -- "$work/$folder" || return 1
    fi
    _bring_gathered || return 1
    [ ! -s "$control/sums" ] || _heard _check_gathered
}

_bring_gathered() {  # what did not come with the job -> problem
    local name from woken=()
    [ -s "$control/sources" ] || return 0
    IFS=$'\t' read -r name from < "$control/sources"
    if [[ $from == /* ]]; then
        _wake_all "$from"
        _retry _heard _copy_gathered
        return
    fi
    while IFS=$'\t' read -r -u 9 name from; do
        rm -f -- "$control/part"*  # what a download knows of the one before
        _retry _bring "$from" "$control/part" || { problem="$from: $problem"; return 1; }
        _heard mv -- "$control/part" "$work/$name" || return 1
    done 9< "$control/sources"
}

_copy_gathered() {  # in a child
    local name from
    while IFS=$'\t' read -r name from; do cp -- "$from" "$work/$name" || return 1; done < "$control/sources"
}

_check_gathered() {  # in a child
    cd -- "$work" && sha256sum -c --quiet .fermigrid/sums >&2
}
