# shellcheck shell=bash
# job.env and the job's row: data of a person, checked, never evaluated.

_bad() { _finish "$BAD_JOB" "bad job description: $*"; }

_need() { [[ $2 =~ $1 ]] || _bad "$3: '$2'"; }  # PATTERN VALUE WHAT

_local_name() {  # NAME WHAT: a relative path that stays where it is put
    case /$1/ in
        // | *//* | */./* | */../* | /.fermigrid*) _bad "$2 '$1' is no relative path" ;;
    esac
}

_assignment() { [[ $1 == *=* ]] || _bad "'$1' is not NAME=value"; _need "$VARIABLE" "${1%%=*}" "name of a variable"; }

_last() {  # COUNT KEY -> last, the index of the group that the key belongs to
    [ "$1" -gt 0 ] || _bad "$2 before its head"
    last=$(($1 - 1))
}

_bindable() { [[ $1 == /* && $1 != *[:,[:cntrl:]]* ]] || _bad "'$1' cannot be bound: absolute, without colons, commas, control characters"; }

_take_setting() {  # KEY VALUE of job.env
    local last
    case $1 in
        campaign | step | site | block | image) _need "$TAME" "$2" "$1" ;;
        format) [ "$2" = 1 ] || _bad "job.env has format $2; this worker knows format 1" ;;
        generation | image.size | node_cache.limit | limit.path | limit.http | limit.stage_in | limit.stage_out | stage.tries | \
            cores.limit | jitter | backoff | grace | walltime | message.timeout | message.instance) _need "$NUMBER" "$2" "$1" ;;
        launch) [[ $2 == site || $2 == worker ]] || _bad "launch=$2" ;;
        order) [[ $2 == wrapper-inside || $2 == wrapper-outside ]] || _bad "order=$2" ;;
        output.kind) [[ $2 =~ ^(transfer|posix|xrootd|http)$ ]] || _bad "output.kind=$2" ;;
        image.sha256 | code.sha256) _need "$HEX64" "$2" "$1" ;;
        image.path) _bindable "$2"; image_paths+=("$2") ;;
        verify) [ "$2" = adler32 ] || _bad "verify=$2" ;;
        image.format) [[ $2 == sif || $2 == directory ]] || _bad "image.format=$2" ;;
        container.workdir | node_cache | scratch) _bindable "$2" ;;
        output.root) [[ ${set_of[output.kind]:-} == [xh]* ]] || _bindable "$2" ;;
        code) _local_name "$2" code ;;
        batch_system | gather | stage.http | rehearsal | image.marker | image.registry | http_proxy | node_cache.shared | message.to | message.from | message.log | message.workdir | message.ca | message.via) ;;
        image.url) image_urls+=("$2") ;;
        runtime) runtimes+=("$2") ;;
        runtime.option) runtime_options+=("$2") ;;
        preamble) preamble+=("$2") ;;
        bind) _bindable "$2"; bind_from+=("$2") bind_to+=("$2") bind_mode+=(ro) bind_required+=(yes) ;;
        bind.to) _last ${#bind_from[@]} "$1"; _bindable "$2"; bind_to[last]=$2 ;;
        bind.mode) _last ${#bind_from[@]} "$1"; _need '^r[ow]$' "$2" "$1"; bind_mode[last]=$2 ;;
        bind.required) _last ${#bind_from[@]} "$1"; _need '^(yes|no)$' "$2" "$1"; bind_required[last]=$2 ;;
        software) software+=("$2") software_from+=('') software_to+=('') software_path+=('') ;;
        software.from) _last ${#software[@]} "$1"; _bindable "$2"; software_from[last]=$2 ;;
        software.to) _last ${#software[@]} "$1"; _bindable "$2"; software_to[last]=$2 ;;
        software.env) _last ${#software[@]} "$1"; _assignment "$2"; software_env+=("$2") software_env_of+=("$last") ;;
        env) _assignment "$2"; env_list+=("$2") ;;
        secret*) _take_secret "$1" "$2" ;;
        *) _bad "unknown key '$1' in job.env" ;;
    esac
    set_of[$1]=$2
}

_take_field() {  # KEY VALUE of the row
    local last
    case $1 in
        job) row_job=$2 ;;
        run) row_run=$2 ;;
        piece) row_piece=$2 ;;
        arg) args+=("$2") ;;
        env) _assignment "$2"; row_env+=("$2") ;;
        in) _local_name "$2" input; in_name+=("$2") in_bytes+=('') in_adler+=('') in_sha+=('') ;;
        in.from) _last ${#in_name[@]} "$1"; in_source+=("$2") in_source_of+=("$last") ;;
        in.bytes) _last ${#in_name[@]} "$1"; _need "$NUMBER" "$2" "$1"; in_bytes[last]=$2 ;;
        in.adler32) [ -n "${set_of[verify]:-}" ] || _bad "in.adler32 without verify=adler32"; _last ${#in_name[@]} "$1"; _need '^[0-9a-f]{1,8}$' "$2" "$1"; printf -v 'in_adler[last]' '%08x' "$((16#$2))" ;;
        in.sha256) _last ${#in_name[@]} "$1"; _need "$HEX64" "$2" "$1"; in_sha[last]=$2 ;;
        out) _local_name "$2" output; out_name+=("$2") out_to+=('') ;;
        more) gathers=$2 ;;
        out.to) _last ${#out_name[@]} "$1"; _local_name "$2" "name to publish"; out_to[last]=$2 ;;
        *) _bad "unknown key '$1' in row $row_number of $shard_file" ;;
    esac
}

_split_field() {  # FIELD TAKER
    local value=${1#*=} key=${1%%=*}
    [[ $1 == *=* && $key =~ $KEY ]] || _bad "'${1:0:100}' is no key=value"
    [[ $value != *\\* ]] || printf -v value '%b' "$value"
    "$2" "$key" "$value"
}

_parse_settings() {  # FILE
    local line
    [ -r "$1" ] || _bad "there is no $1 in $PWD"
    while IFS= read -r line || [ -n "$line" ]; do
        _split_field "$line" _take_setting
    done < "$1"
    for line in format campaign step site block generation launch image output.kind; do
        [ -n "${set_of[$line]:-}" ] || _bad "job.env has no $line"
    done
    [ "${set_of[output.kind]}" = transfer ] || [ -n "${set_of[output.root]:-}" ] || _bad "output.kind=${set_of[output.kind]} without output.root"
    [ ${#image_urls[@]} = 0 ] || [ -n "${set_of[image.sha256]:-}" ] || _bad "image.url without image.sha256"
    [ -z "${set_of[code]:-}" ] || [ -n "${set_of[code.sha256]:-}" ] || _bad "code without code.sha256"
}

_parse_row() {  # FILE NUMBER
    local lines=() rest i
    mapfile -t -s $(($2 - 1)) -n 1 lines < "$1"
    [ ${#lines[@]} = 1 ] || _bad "$1 has no row $2"
    rest=${lines[0]}$'\t'
    while [ -n "$rest" ]; do
        _split_field "${rest%%$'\t'*}" _take_field
        rest=${rest#*$'\t'}
    done
    [ "$row_job" = "$job" ] || _bad "row $2 of $1 is of job '$row_job', not of '$job'"
    [ ${#args[@]} -gt 0 ] || _bad "row $2 of $1 has no command"
    for i in "${!out_name[@]}"; do
        [ -n "${out_to[i]}" ] || _bad "output '${out_name[i]}' without out.to"
        [[ ${set_of[output.kind]} != [xh]* ]] || _need '^[A-Za-z0-9._+=@,:~/-]+$' "${out_to[i]}" "name in a URL"
    done
}

_check_digests() {  # DIGEST: job.env's is an argument, the shard's in its name, the bundle's in job.env
    local i digests=("$1") files=(job.env "$shard_file")
    [[ $shard_file =~ -([0-9a-f]{32})\.rows$ ]] || _bad "the name of $shard_file carries no digest"
    digests+=("${BASH_REMATCH[1]}")
    [ -z "${set_of[code]:-}" ] || files+=("${set_of[code]}") digests+=("${set_of[code.sha256]}")
    for i in "${files[@]}"; do [ -r "$i" ] || _bad "there is no $i in $PWD"; done
    _sha256 "${files[@]}"
    for i in "${!files[@]}"; do
        [[ ${answer[i]} == "${digests[i]}"* ]] || _bad "${files[i]} is damaged: its sha256 is ${answer[i]}"
    done
}

_find_start() {  # which start of the job this is, and the attempt's name
    local ad='' uuid
    start=${FERMIGRID_START:-}
    if [ -z "$start" ] && [ -r .job.ad ]; then
        IFS= read -r -d '' ad < .job.ad || :
        ad=${ad##*NumShadowStarts = } start=${ad%%[!0-9]*}
    fi
    [[ $start =~ ^[1-9][0-9]{0,8}$ ]] || start=1
    read -r uuid < /proc/sys/kernel/random/uuid
    attempt=g${set_of[generation]:-0}.s$start.${uuid:0:8}
}
