# shellcheck shell=bash
# The report: one line of JSON. Other bytes than the sequences of `utf8` become U+FFFD, because JSON is UTF-8.

utf8=$'^([\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf][\x80-\xbf]|\xed[\x80-\x9f][\x80-\xbf]'
utf8+=$'|\xf0[\x90-\xbf][\x80-\xbf][\x80-\xbf]|[\xf1-\xf3][\x80-\xbf][\x80-\xbf][\x80-\xbf]|\xf4[\x80-\x8f][\x80-\xbf][\x80-\xbf])'

_json() {  # TEXT -> json, a JSON string with its quotes
    local rest=$1 out='' run code two="\\\\" quote="\\\""
    if [[ $rest != *[!\ -~]* ]]; then
        rest=${rest//\\/$two}
        json="\"${rest//\"/$quote}\""
        return 0
    fi
    while [ -n "$rest" ]; do
        run=${rest%%[!\ !#-\[\]-~]*}
        out+=$run
        rest=${rest#"$run"}
        [ -n "$rest" ] || break
        if [[ ${rest:0:4} =~ $utf8 ]]; then
            out+=${BASH_REMATCH[1]}
            rest=${rest:${#BASH_REMATCH[1]}}
            continue
        fi
        case ${rest:0:1} in
            \" | \\) out+=\\${rest:0:1} ;;
            [[:cntrl:]]) printf -v code '%d' "'${rest:0:1}"; printf -v code '\\u%04x' $((code & 255)); out+=$code ;;
            *) out+='\ufffd' ;;
        esac
        rest=${rest:1}
    done
    json="\"$out\""
}

_object() {  # NAME TEXT ...: -> object, a JSON object. The value of a @NAME is JSON already
    object=''
    while [ $# -gt 0 ]; do
        if [[ $1 == @* ]]; then json=$2; else _json "$2"; fi
        object+="${object:+, }\"${1#@}\": $json"
        shift 2
    done
    object="{$object}"
}

_read_summary() {  # `key: value` lines of the payload, the last value of a key; bounded, because a payload writes it
    local line key value i count=0
    [ -n "$control" ] && [ -f "$control/summary" ] && [ ! -L "$control/summary" ] || return 0
    while { IFS= read -r -n 4096 line || [ -n "$line" ]; } && [ "$count" -lt 1000 ]; do
        count=$((count + 1)) key=${line%%:*} value=${line#*:}
        [[ $line == *:* && $key != PipelineC* && $key =~ ^[A-Za-z][A-Za-z0-9_.-]{0,63}$ ]] || continue
        value=${value#"${value%%[! ]*}"}
        for i in "${!summary_keys[@]}"; do [ "${summary_keys[i]}" != "$key" ] || { summary_values[i]=${value:0:SUMMARY_BYTES}; continue 2; }; done
        [ ${#summary_keys[@]} -lt "$SUMMARY_KEYS" ] || continue
        summary_keys+=("$key") summary_values+=("${value:0:SUMMARY_BYTES}")
    done < "$control/summary"
}

_collect_runtime() {  # -> runtime_version; asked for when the runtime was found, it is there by now
    local line=''
    [ -n "$version_fd" ] || return 0
    read -r -t 2 -u "$version_fd" line || :
    exec {version_fd}<&-
    version_fd=''
    runtime_version=${line##* }
}

_describe_image() {
    [ -z "$json_image" ] || return 0
    local digest=''
    [[ $image != */"${set_of[image.sha256]:-none}".* ]] || digest=${set_of[image.sha256]}
    _object name "${set_of[image]:-}" rung "$rung" source "$image_source" sha256 "$digest" @bytes "$image_bytes" \
        @seconds "$image_seconds" @tried "[$json_tried]"
    json_image=$object
}

_describe_binds() {
    [ -z "$json_binds" ] || return 0
    local i required
    for i in "${!bind_result[@]}"; do
        if [ "${bind_required[i]}" = yes ]; then required=true; else required=false; fi
        _object from "${bind_from[i]}" to "${bind_to[i]}" mode "${bind_mode[i]}" @required "$required" result "${bind_result[i]}"
        json_binds+=${json_binds:+, }$object
    done
}

_describe_outputs() {
    local i
    for i in "${!out_file[@]}"; do
        _object name "${out_name[i]}" to "${out_to[i]}" file "${out_file[i]}" @bytes "${out_bytes[i]}" sha256 "${out_sha[i]}" \
            result "${out_result[i]}"
        json_outputs+=${json_outputs:+, }$object
    done
}

_describe() {  # -> json_report, the whole report
    local i name parts_of=() lines=() phases summary runtime user words="${signals[*]-}"
    _collect_runtime
    _describe_image
    _describe_binds
    [ "$exit_code" != 0 ] || _describe_outputs
    _phase finish
    for name in setup secrets image stage_in payload stage_out; do
        _seconds "${spent[$name]}"
        parts_of+=("@$name" "$seconds")
    done
    _seconds $((now_ms - begin_ms))
    _object "${parts_of[@]}" @total "$seconds"
    phases=$object
    _seconds "$user_ms"
    user=$seconds
    _seconds "$system_ms"
    for i in "${!summary_keys[@]}"; do lines+=("${summary_keys[i]}" "${summary_values[i]}"); done
    _object ${lines[@]+"${lines[@]}"}
    summary=$object
    _object name "$runtime_name" version "$runtime_version" @userns "$userns" overlay "$overlay" unsquash "${unsquash:-no}"
    runtime=$object
    _object @format 1 job "$job" batch "$batch" attempt "$attempt" @start "$start" site "${set_of[site]:-}" host "${HOSTNAME:-}" \
        where "$where" container "$container" @rehearsal "$rehearsal" order "${set_of[order]:-wrapper-outside}" \
        @started_payload "$started_payload" @image "$json_image" @runtime "$runtime" @binds "[$json_binds]" @cvmfs "[$json_cvmfs]" @phases "$phases" \
        @user "$user" @system "$seconds" @exit "$exit_code" @payload_exit "$payload_exit" @signal "$payload_signal" @signals "[${words:+\"${words// /\", \"}\"}]" \
        message "${message:0:MESSAGE_BYTES}" @inputs "[$json_inputs]" @outputs "[$json_outputs]" @cores "[$json_cores]" @summary "$summary" \
        @begin "$begin" @end $((begin + (now_ms - begin_ms) / 1000))
    json_report=$object
}

_print_report() {
    printf '\n@@FERMIGRID 1 %d %s\n' "${#json_report}" "$json_report"
}
