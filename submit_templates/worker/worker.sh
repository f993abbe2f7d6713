#!/bin/bash
# The fermigrid worker: the program that runs on the node, around one job's payload.
#
#   worker.sh run JOB SHARDFILE ROW BATCH      in a scratch folder with job.env, the shard file and the bundle
#
# It finds or starts the container, stages in, runs the payload, stages out, and ends its stdout with one line, the report,
# in every case. The contract is docs/architecture.md, the manual docs/reference/worker.md. bash 4.1 or later, coreutils, curl or wget.
#
# Conventions: functions that find something out leave it in a global variable named in their comment, because every $( )
# is a fork. `_finish CODE WORDS` is the only way out; the EXIT trap cleans and reports. Data of a person is never evaluated.
# shellcheck disable=SC2016  # the launcher's text has dollars of its own
set -Eeuo pipefail
export LC_ALL=C  # bytes are bytes, and tools speak the language that is matched below
unset LD_LIBRARY_PATH LD_PRELOAD BASH_ENV ENV CDPATH
host_path=${PATH:-/usr/local/bin:/usr/bin:/bin}
export PATH=$host_path:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin
shopt -u patsub_replacement 2> /dev/null || :  # bash 5.2: & in a replacement is a plain character

readonly BAD_JOB=80 NO_RUNTIME=81 NO_IMAGE=82 IMAGE_DAMAGED=83 NO_BIND=84 NO_SECRET=85 STAGE_IN=86 NO_OUTPUT=87 \
    STAGE_OUT=88 SCRATCH_FULL=89 EXPIRED=90 CVMFS_BROKEN=91 INTERNAL=99
readonly TAME='^[A-Za-z0-9][A-Za-z0-9._-]*$' VARIABLE='^[A-Za-z_][A-Za-z0-9_]*$' HEX64='^[0-9a-f]{64}$'
readonly KEY='^[a-z][a-z0-9_.]*$' NUMBER='^[0-9]{1,18}$'
readonly MARKER_FILE=/etc/fermigrid-image
readonly FREE_KB=1024  # less free space than this is "full"
readonly SUMMARY_KEYS=64 SUMMARY_BYTES=256 MESSAGE_BYTES=2000

# ==== what is known
job='' shard_file='' row_number='' batch=''  # the arguments
side=run  # run; inside: started again in the container by order wrapper-inside
declare -A set_of=()  # job.env: the keys that come once
image_urls=() runtimes=() env_list=()
bind_from=() bind_to=() bind_mode=() bind_required=() bind_result=()
software=() software_from=() software_to=() software_path=() software_env=() software_env_of=()
secret=() secret_from=() secret_point=() secret_point_of=() secret_set=()
row_job='' row_run='' row_piece='' args=() row_env=()
in_name=() in_bytes=() in_adler=() in_sha=() in_source=() in_source_of=()
out_name=() out_to=()

scratch='' work='' control='' view='' secret_view=''  # folders; `view`: work as the payload sees it
attempt='' start=1 begin=0 begin_ms=0 now_ms=0 phase=setup phase_ms=0
declare -A spent=([setup]=0 [secrets]=0 [image]=0 [stage_in]=0 [payload]=0 [stage_out]=0)
where=host container=none rehearsal=false runtime='' runtime_name='' runtime_version='' userns=null version_fd=''
image='' rung=none image_source='' image_bytes=0 image_seconds=0.0 cache_dir='' cache_fd='' lock_fd='' lock_dir=''
secret_dir='' secret_fd='' guard_fd=''
inner_runs='' started_payload=false payload_exit=null payload_signal=null signals=() pending=()
exit_code='' message='' finishing='' critical='' deferred=''
payload_group='' child='' asked='' kill_at=0 pipe_fd='' parts=()
json='' object='' json_tried='' json_inputs='' json_outputs='' json_image='' json_binds='' json_report=''
summary_keys=() summary_values=()
answer=()

# ==== time and words
_now() {  # -> now_ms, milliseconds
    local t
    if [ -n "${EPOCHREALTIME:-}" ]; then
        t=${EPOCHREALTIME//[^0-9]/}
        now_ms=$((t / 1000))
    else
        read -r t _ < /proc/uptime
        t=${t/./}
        now_ms=$((10#$t * 10))
    fi
}

_utc() {  # EPOCH_SECONDS -> utc; the calendar by arithmetic, because old bash has no clock of its own
    local z=$(($1 / 86400 + 719468)) s=$(($1 % 86400)) era doe yoe doy mp year day month
    era=$((z / 146097)) doe=$((z % 146097))
    yoe=$(((doe - doe / 1460 + doe / 36524 - doe / 146096) / 365))
    doy=$((doe - (365 * yoe + yoe / 4 - yoe / 100)))
    mp=$(((5 * doy + 2) / 153))
    day=$((doy - (153 * mp + 2) / 5 + 1)) month=$((mp < 10 ? mp + 3 : mp - 9))
    year=$((yoe + era * 400 + (month <= 2)))
    printf -v utc '%04d-%02d-%02dT%02d:%02d:%02dZ' "$year" "$month" "$day" $((s / 3600)) $((s / 60 % 60)) $((s % 60))
}

_log() {  # WORDS...
    local utc words="$*"
    _now
    _utc $((begin + (now_ms - begin_ms) / 1000))
    printf 'fermigrid| %s %s\n' "$utc" "${words//[[:cntrl:]]/?}" >&2 2> /dev/null || :
}

_seconds() {  # MILLISECONDS -> seconds, a decimal number
    local ms=$(($1 < 0 ? 0 : $1))
    printf -v seconds '%d.%03d' $((ms / 1000)) $((ms % 1000))
}

_phase() {  # NAME: the time until now belongs to the phase before
    _now
    spent[$phase]=$((${spent[$phase]:-0} + now_ms - phase_ms))
    phase=$1 phase_ms=$now_ms
}

_get() { printf -v "$1" '%s' "${set_of[$2]:-${3:-}}"; }  # VARIABLE KEY [DEFAULT]

# ==== ways out
_finish() {  # CODE WORDS...
    finishing=yes
    exit_code=$1
    shift
    message=$*
    exit "$exit_code"
}

_finish_or_full() {  # CODE WORDS... ; 89 when the scratch disk is the reason
    if _scratch_is_full; then
        local code=$1
        shift
        _finish "$SCRATCH_FULL" "scratch is full ($scratch; it would have been $code): $*"
    fi
    _finish "$@"
}

_scratch_is_full() {
    local free=''
    { read -r _ && read -r _ _ _ free _; } < <(df -P -k -- "${scratch:-.}" 2> /dev/null) || return 1
    [[ $free =~ $NUMBER ]] && [ "$free" -lt "$FREE_KB" ]
}

_on_error() {  # STATUS FUNCTION LINE COMMAND
    [ "$BASHPID" = "$$" ] || exit "$1"  # a subshell: its parent decides
    trap - ERR
    if [ "$phase" != finish ] && _scratch_is_full; then
        _finish "$SCRATCH_FULL" "scratch is full ($scratch): $2, line $3"
    fi
    _finish "$INTERNAL" "internal error in $2, line $3, status $1"
}

# Runs in the middle of whatever is going on, often a `read`, so it reads nothing: a second `read` makes the first one wait for ever.
_on_signal() {  # NAME NUMBER
    signals+=("$1")
    if [ -n "$finishing" ]; then
        return 0
    elif [ "$phase" = payload ]; then
        pending+=("$1")
        printf 'signal\n' >&"$pipe_fd"  # wakes _await
    elif [[ $1 == USR[12] || $1 == XCPU ]]; then
        return 0  # a warning to a payload that does not run
    elif [ -n "$critical" ]; then
        deferred=$2
    else
        _finish $((128 + $2)) "ended by signal $1 in phase $phase"
    fi
}

_forward() {  # pending signals to the payload, once it runs; those that end a job start its grace time
    local name grace
    if [ -z "$payload_group" ]; then return 0; fi
    if [ ! -e "$control/started.$side" ]; then
        ! _ending_signal || kill -KILL -- "-$payload_group" 2> /dev/null || :
        return 0
    fi
    for name in ${pending[@]+"${pending[@]}"}; do
        _log "signal $name goes to the payload"
        _signal_payload "$name"
        if [ "$kill_at" != 0 ] || [[ $name == USR[12] || $name == XCPU ]]; then continue; fi
        _get grace grace 10
        [ -z "$inner_runs" ] || grace=$((grace + 2))  # the inner worker is done before the outer loses patience
        _now
        kill_at=$((now_ms + grace * 1000))
    done
    pending=()
}

_signal_payload() {  # NAME: to the process group, but for the runtime in it, which would pass it on a second time
    local file line
    if ! _starts_container; then kill "-$1" -- "-$payload_group" 2> /dev/null || :; return 0; fi
    for file in /proc/[0-9]*/stat; do
        { read -r line < "$file"; } 2> /dev/null || continue
        # 4523 (name) S parent group ...
        if [[ ${line##*) } == ?' '*' '"$payload_group "* && ${line%% *} != "$payload_group" ]]; then
            kill "-$1" "${line%% *}" 2> /dev/null || :
        fi
    done
}

_ending_signal() {  # -> true, and `ending` its number, when a signal has come that ends a job
    local name
    ending=''
    for name in ${signals[@]+"${signals[@]}"}; do
        case $name in HUP) ending=1 ;; INT) ending=2 ;; QUIT) ending=3 ;; TERM) ending=15 ;; esac
    done
    [ -n "$ending" ]
}

# ==== children
# Job control gives each child its own process group, in which INT and QUIT are not ignored, and that can be killed whole.

# Polls, ever more slowly, up to twice a second: in bash's own `wait`, of two signals at once, or a signal and the end of the
# child, one can be lost. Kills the group when `kill_at` comes, and gives up 5 s later: a dead mount makes processes unkillable.
_await() {  # GROUP -> its status
    local nap=5 pause status=0
    while kill -0 "$1" 2> /dev/null; do
        [ ${#pending[@]} = 0 ] || _forward
        if [ "$kill_at" != 0 ]; then
            _now
            [ "$now_ms" -lt "$kill_at" ] || kill -KILL -- "-$1" 2> /dev/null || :
            if [ "$now_ms" -gt $((kill_at + 5000)) ]; then disown "$1"; kill_at=0; return 137; fi
        fi
        printf -v pause '0.%03d' "$nap"
        read -r -t "$pause" -u "$pipe_fd" _ || :
        nap=$((nap < 470 ? nap + nap / 16 + 1 : 499))
    done
    kill_at=0
    wait "$1" 2> /dev/null || status=$?
    return "$status"
}

_run() {  # SECONDS COMMAND... ; signals are answered at once; 137 when it took longer (0: no limit)
    local limit=$1 status=0
    shift
    set -m
    "$@" < /dev/null 3>&- 4>&- &
    child=$!
    set +m
    if [ "$limit" != 0 ]; then _now; kill_at=$((now_ms + limit * 1000)); fi
    _await "$child" || status=$?
    child=''
    return "$status"
}

_sleep() { _run 0 sleep "$1" || :; }

# Asks something that may never be answered, such as the state of a mount, in a child that is left behind when even
# KILL does not end it. -> answer: the lines of its stdout; false when none came for SECONDS.
_ask() {  # SECONDS COMMAND... (0: no limit)
    local limit=$1 fd line='' waited=0 status
    shift
    answer=()
    exec {fd}< <(trap - ERR; set +Ee; exec 2> /dev/null < /dev/null 3>&- 4>&-; printf '%s\n' "$BASHPID"; "$@"; printf 'ended\n')
    read -r -u "$fd" asked
    while [ "$line" != ended ]; do
        status=0
        IFS= read -r -t 1 -u "$fd" line || status=$?  # by the second: old bash runs no trap in a longer one
        if [ "$status" = 0 ]; then
            [ "$line" = ended ] || answer+=("$line")
        elif [ "$status" -le 128 ] || { waited=$((waited + 1)) && [ "$waited" = "$limit" ]; }; then
            kill -KILL "$asked" 2> /dev/null || :
            break
        fi
    done
    exec {fd}<&-
    asked=''
    [ "$line" = ended ]
}

_sha256() {  # FILE... -> answer: their digests in order, empty for one that cannot be read
    local i lines=()
    answer=()
    [ $# -gt 0 ] || return 0
    if ! _ask 0 sha256sum -- "$@" || [ ${#answer[@]} != $# ]; then
        for i in "$@"; do _ask 0 sha256sum -- "$i" || :; lines+=("${answer[0]:-}"); done
        answer=("${lines[@]}")
    fi
    for i in "${!answer[@]}"; do
        answer[i]=${answer[i]#\\}  # a backslash before the digest: the name was escaped
        answer[i]=${answer[i]%% *}
    done
}

_size() {  # FILE -> size; empty when there is none
    size=$(stat -L -c %s -- "$1" 2> /dev/null) || size=''
}

# ==== job.env and the row
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

_bindable() { [[ $1 == /* && $1 != *[:,]* ]] || _bad "'$1' cannot be bound: it must be absolute, without colons and commas"; }

_take_setting() {  # KEY VALUE of job.env
    local last
    case $1 in
        campaign | step | site | block | image) _need "$TAME" "$2" "$1" ;;
        format) [ "$2" = 1 ] || _bad "job.env has format $2; this worker knows format 1" ;;
        generation | image.size | node_cache.limit | limit.path | limit.http | backoff | grace) _need "$NUMBER" "$2" "$1" ;;
        launch) [[ $2 == site || $2 == worker ]] || _bad "launch=$2" ;;
        order) [[ $2 == wrapper-inside || $2 == wrapper-outside ]] || _bad "order=$2" ;;
        output.kind) [[ $2 == transfer || $2 == posix ]] || _bad "output.kind=$2" ;;
        image.sha256 | code.sha256) _need "$HEX64" "$2" "$1" ;;
        image.path | container.workdir | node_cache | output.root) _bindable "$2" ;;
        code) _local_name "$2" code ;;
        rehearsal | image.marker | image.registry | http_proxy) ;;
        image.url) image_urls+=("$2") ;;
        runtime) runtimes+=("$2") ;;
        bind) _bindable "$2"; bind_from+=("$2") bind_to+=("$2") bind_mode+=(ro) bind_required+=(yes) ;;
        bind.to) _last ${#bind_from[@]} "$1"; _bindable "$2"; bind_to[last]=$2 ;;
        bind.mode) _last ${#bind_from[@]} "$1"; _need '^r[ow]$' "$2" "$1"; bind_mode[last]=$2 ;;
        bind.required) _last ${#bind_from[@]} "$1"; _need '^(yes|no)$' "$2" "$1"; bind_required[last]=$2 ;;
        software) software+=("$2") software_from+=('') software_to+=('') software_path+=('') ;;
        software.from) _last ${#software[@]} "$1"; _bindable "$2"; software_from[last]=$2 ;;
        software.to) _last ${#software[@]} "$1"; _bindable "$2"; software_to[last]=$2 ;;
        software.env) _last ${#software[@]} "$1"; _assignment "$2"; software_env+=("$2") software_env_of+=("$last") ;;
        env) _assignment "$2"; env_list+=("$2") ;;
        secret) _need "$TAME" "$2" "$1"; secret+=("$2") secret_from+=('') ;;
        secret.from) _last ${#secret[@]} "$1"; secret_from[last]=$2 ;;
        secret.point) _last ${#secret[@]} "$1"; _assignment "$2"; secret_point+=("$2") secret_point_of+=("$last") ;;
        secret.set) _last ${#secret[@]} "$1"; _assignment "$2"; secret_set+=("$2") ;;
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
        in.adler32) _last ${#in_name[@]} "$1"; _need '^[0-9a-f]{1,8}$' "$2" "$1"; in_adler[last]=$2 ;;
        in.sha256) _last ${#in_name[@]} "$1"; _need "$HEX64" "$2" "$1"; in_sha[last]=$2 ;;
        out) _local_name "$2" output; out_name+=("$2") out_to+=('') ;;
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
    [ "${set_of[output.kind]}" = transfer ] || [ -n "${set_of[output.root]:-}" ] || _bad "output.kind=posix without output.root"
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
    for i in "${!out_name[@]}"; do [ -n "${out_to[i]}" ] || _bad "output '${out_name[i]}' without out.to"; done
}

_check_digests() {  # the shard's name carries its digest; the bundle's is in job.env
    local digests=() files=("$shard_file")
    [[ $shard_file =~ -([0-9a-f]{32})\.rows$ ]] || _bad "the name of $shard_file carries no digest"
    digests=("${BASH_REMATCH[1]}")
    [ -r "$shard_file" ] || _bad "there is no $shard_file in $PWD"
    if [ -n "${set_of[code]:-}" ]; then
        [ -r "${set_of[code]}" ] || _bad "there is no ${set_of[code]} in $PWD"
        files+=("${set_of[code]}") digests+=("${set_of[code.sha256]}")
    fi
    _sha256 "${files[@]}"
    [ "${answer[0]:0:32}" = "${digests[0]}" ] || _bad "$shard_file is damaged: its sha256 is ${answer[0]}"
    [ ${#files[@]} = 1 ] || [ "${answer[1]}" = "${digests[1]}" ] || _bad "${set_of[code]} is damaged: its sha256 is ${answer[1]}"
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

# ==== where am I
_find_where() {  # -> where: image, other (another image) or host
    local found='' inside=${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-}}
    [ ! -r "$MARKER_FILE" ] || IFS= read -r found < "$MARKER_FILE" || :
    if [ -n "${set_of[image.marker]:-}" ]; then
        [ "$found" != "${set_of[image.marker]}" ] || where=image
    elif [ -n "$inside" ] && [ "$inside" = "${set_of[image.path]:-}" ]; then
        where=image
    fi
    if [ "$where" = host ] && { [ -n "$inside$found" ] || [ -d /.singularity.d ]; }; then
        where=other
        _log "this is another image (${found:-${inside:-unnamed}})"
    fi
}

_find_userns() {  # [MAP] -> userns: whether there is a user namespace that maps few users
    local map=${1:-} first='' count=''
    if [ -z "$map" ]; then
        read -r first _ count < /proc/self/uid_map || :
        map="$first $count"
    fi
    if [ "$map" = "0 4294967295" ]; then userns=false; else userns=true; fi
}

_use_this_container() {  # the site has started the right image
    container=site rung=site image_source=${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-${set_of[image.path]:-}}}
    if [ -n "${APPTAINER_CONTAINER:-}" ]; then runtime_name=apptainer; elif [ -n "${SINGULARITY_CONTAINER:-}" ]; then runtime_name=singularity; fi
    _find_userns
    _check_targets
    _check_software
}

_rehearse() {  # WHY
    container=none rehearsal=true rung=none runtime=''
    _log "rehearsal: not containerised ($1)"
    _check_targets
    _check_software
}

_make_container_ready() {
    local found=no words
    if [ "$where" = image ]; then _use_this_container; return 0; fi
    _find_runtime && found=yes
    if [ "$found" = no ]; then
        words="none of ${runtimes[*]-apptainer singularity} is on $HOSTNAME"
        [ "$where" = host ] || _finish "$NO_IMAGE" "in another image, and $words"
        [ "${set_of[rehearsal]:-}" = yes ] || _finish "$NO_RUNTIME" "no container runtime: $words"
        _rehearse "$words"
        return 0
    fi
    _phase image
    _climb_ladder
    if [ "$where" = other ] || [ "${set_of[rehearsal]:-}" = yes ]; then
        if ! _try_image; then
            [ "$where" = host ] || _finish "$NO_IMAGE" "in another image, and $runtime does not work in it: $words"
            _rehearse "$runtime does not work here: $words"
            return 0
        fi
    fi
    [ "$where" = host ] && container=worker || container=nested
    _wake_binds
}

_find_runtime() {  # -> runtime, and its version on version_fd
    local name
    [ ${#runtimes[@]} -gt 0 ] || runtimes=(apptainer singularity)
    for name in "${runtimes[@]}"; do
        if command -v -- "$name" > /dev/null; then
            runtime=$name runtime_name=${name##*/}
            exec {version_fd}< <(exec "$name" --version 2> /dev/null < /dev/null)
            return 0
        fi
    done
    return 1
}

# ==== the image ladder
_climb_ladder() {  # -> image, a folder or file that the runtime can start; 82, 83, 91
    local began damaged=0 others=0 broken='' result rung_began
    _now
    began=$now_ms
    # each rung says in `result` how it went, and in json_tried
    if _rung_path || _rung_cache || _rung_http || _rung_registry; then
        _now
        _seconds $((now_ms - began))
        image_seconds=$seconds
        _log "image ${set_of[image]}: $rung, $image_source, $seconds s"
        return 0
    fi
    [ -z "$broken" ] || _finish "$CVMFS_BROKEN" "CVMFS is broken on $HOSTNAME ($broken), and no other source has the image"
    [ "$damaged" = 0 ] || [ "$others" != 0 ] || _finish "$IMAGE_DAMAGED" "every source of the image ${set_of[image]} is damaged: $result"
    _finish_or_full "$NO_IMAGE" "no source has the image ${set_of[image]} for $HOSTNAME"
}

_tried() {  # RUNG SOURCE RESULT [damaged]; the result of one try, since rung_began
    result=$3
    _now
    _seconds $((now_ms - rung_began))
    _object rung "$1" source "$2" result "$3" @seconds "$seconds"
    json_tried+=${json_tried:+, }$object
    if [ "${4:-}" = damaged ]; then damaged=$((damaged + 1)); elif [ "$3" != ok ] && [ "$3" != absent ]; then others=$((others + 1)); fi
    [ "$3" = ok ] || _log "image: $1: $2: $3"
    rung_began=$now_ms
}

_served() {  # RUNG SOURCE FILE
    rung=$1 image_source=$2 image=$3
    _tried "$1" "$2" ok
}

_rung_path() {
    local path=${set_of[image.path]:-} limit
    [ -n "$path" ] || return 1
    _get limit limit.path 30
    _now
    rung_began=$now_ms
    if ! _ask "$limit" _probe_image "$path" "${set_of[image.marker]:-}" || [ ${#answer[@]} = 0 ]; then
        [[ $path != /cvmfs/* ]] || broken="no answer from $path within $limit s"
        _tried path "$path" timeout
        return 1
    fi
    case ${answer[0]} in
        ok) _served path "$path" "$path"; return 0 ;;
        absent) _tried path "$path" absent ;;
        cvmfs) broken="${answer[1]:-}"; _tried path "$path" "broken: ${answer[1]:-}" ;;
        damaged) _tried path "$path" "damaged: ${answer[1]:-}" damaged ;;
        *) _tried path "$path" "broken: ${answer[1]:-}" ;;
    esac
    return 1
}

_probe_image() {  # PATH MARKER; runs in a child that may hang -> two lines: ok|absent|cvmfs|damaged|broken, and words
    local words found=''
    if ! words=$(ls -L -- "$1" 2>&1 > /dev/null); then
        case $words in
            *'ransport endpoint is not connected'*) printf 'cvmfs\n%s\n' "$words" ;;
            *'No such file'*) printf 'absent\n' ;;
            *) printf 'broken\n%s\n' "$words" ;;
        esac
    elif [ -d "$1" ]; then
        [ ! -r "$1$MARKER_FILE" ] || IFS= read -r found < "$1$MARKER_FILE" || :
        if [ ! -e "$1/bin/sh" ] && [ ! -L "$1/bin/sh" ] && [ ! -L "$1/bin" ]; then
            printf 'damaged\n%s\n' "the folder holds no image (no bin/sh)"
        elif [ -n "$2" ] && [ "$found" != "$2" ]; then
            printf 'damaged\n%s\n' "its marker is '$found', the catalogue says '$2'"
        else
            printf 'ok\n'
        fi
    elif _sif_is_whole "$1"; then
        printf 'ok\n'
    else
        printf 'damaged\n%s\n' "$sif_problem"
    fi
}

_sif_is_whole() {  # FILE -> sif_problem. A SIF has a 32-byte launch line, its magic word, and at 112 and 120 where its data lies
    local magic='' offset='' length='' size
    _size "$1"
    sif_problem="no SIF file"
    { IFS= read -r _; IFS= read -r -n 9 magic; } 2> /dev/null < "$1" || :
    [ "$magic" = SIF_MAGIC ] || return 1
    read -r offset length < <(od -A n -t d8 -j 112 -N 16 -- "$1") || :
    sif_problem="truncated: ${size:-0} bytes"
    [[ $offset =~ $NUMBER && $length =~ $NUMBER ]] && [ "${size:-0}" -ge $((offset + length)) ]
}

# --- rung 2: the node's cache: <sha256>.sif, its stamp "<size> <mtime>" from when its digest was taken
_open_cache() {  # -> cache_dir, private to this user; empty when there is none
    local base=${set_of[node_cache]:-} limit
    cache_dir=''
    [ -n "$base" ] && [ -n "${set_of[image.sha256]:-}" ] || return 1
    _get limit limit.path 30
    if _ask "$limit" _make_cache "$base/u$EUID" && [ "${answer[0]:-}" = ok ]; then
        cache_dir=$base/u$EUID
    else
        _log "node cache $base cannot be used: ${answer[0]:-no answer within $limit s}"
        return 1
    fi
}

_make_cache() {  # FOLDER; runs in a child that may hang
    ( umask 022; mkdir -p -- "${1%/*}"; mkdir -m 700 -- "$1" ) > /dev/null 2>&1 || :
    if [ -L "$1" ] || [ ! -O "$1" ]; then printf 'it is not a folder of this user\n'; return; fi
    [ "$(stat -c %a -- "$1")" = 700 ] || chmod 700 -- "$1"
    if [ -w "$1" ]; then printf 'ok\n'; else printf 'it is not writable\n'; fi
}

_rung_cache() {
    local file stamp now=''
    _open_cache || return 1
    _now
    rung_began=$now_ms
    file=$cache_dir/${set_of[image.sha256]}.sif
    if [ ! -e "$file" ] || ! _hold "$file"; then _tried cache "$file" absent; return 1; fi
    stamp=''
    read -r stamp 2> /dev/null < "$file.stamp" || :
    now=$(stat -L -c '%s %Y' -- "$file" 2> /dev/null) || :
    if [ "$stamp" != "$now" ]; then
        _log "the cached image does not fit its stamp: its digest is taken again"
        _sha256 "$file"
        if [ "${answer[0]}" != "${set_of[image.sha256]}" ]; then
            rm -f -- "$file" "$file.stamp"
            _tried cache "$file" "damaged: sha256 ${answer[0]}" damaged
            return 1
        fi
        _write_stamp "$file"
    fi
    touch -- "$file.stamp" 2> /dev/null || :  # the stamp's own time: when the image was last used
    image_bytes=${now%% *}
    _served cache "$file" "$file"
}

_hold() {  # FILE: a shared lock as long as this worker lives, so that nobody makes room with it
    [ -z "$cache_fd" ] || exec {cache_fd}<&-
    { exec {cache_fd}< "$1"; } 2> /dev/null || { cache_fd=''; return 1; }
    ! command -v flock > /dev/null || flock -s -n "$cache_fd" || return 1
    [ "$1" -ef "/dev/fd/$cache_fd" ]  # still there under its name
}

_write_stamp() { stat -L -c '%s %Y' -- "$1" > "$1.new.$$" && mv -f -- "$1.new.$$" "$1.stamp"; }  # FILE

_lock_cache() {  # SECONDS: one download on a node at a time; the lock ends with the process, however that dies
    local waited=0
    if command -v flock > /dev/null; then
        { exec {lock_fd}>> "$cache_dir/lock"; } 2> /dev/null || { lock_fd=''; return 1; }
        _run "$1" flock "$lock_fd"
        return
    fi
    while ! mkdir -- "$cache_dir/lock.d" 2> /dev/null; do
        [ -z "$(find "$cache_dir/lock.d" -maxdepth 0 -mmin +$(($1 / 60 + 2)) 2> /dev/null)" ] || rmdir -- "$cache_dir/lock.d" || :
        waited=$((waited + 1))
        [ "$waited" -le "$1" ] || return 1
        _sleep 1
    done
    lock_dir=$cache_dir/lock.d
}

_unlock_cache() {
    [ -z "$lock_fd" ] || exec {lock_fd}>&-
    [ -z "$lock_dir" ] || rmdir -- "$lock_dir" 2> /dev/null || :
    lock_fd='' lock_dir=''
}

_make_room() {  # BYTES: evicts images, least recently used first, never one in use; false when that is not enough
    local need=$1 limit total=0 bytes name oldest
    local -A held=()
    _get limit node_cache.limit 0
    [ "$limit" != 0 ] || return 0
    [ "$need" -le "$limit" ] || return 1
    while :; do
        total=0 oldest=''
        for name in "$cache_dir"/*.sif "$cache_dir"/*.part; do
            [ "$name" != "$cache_dir/${set_of[image.sha256]}.part" ] || continue
            bytes=$(stat -c %s -- "$name" 2> /dev/null) || continue
            total=$((total + bytes))
            [ -z "${held[$name]:-}" ] || continue
            if [ -z "$oldest" ] || [ "$name.stamp" -ot "$oldest.stamp" ]; then oldest=$name; fi
        done
        [ $((total + need)) -gt "$limit" ] || return 0
        [ -n "$oldest" ] || return 1
        if _in_use "$oldest"; then
            held[$oldest]=yes
        else
            _log "node cache: ${oldest##*/} makes room"
            rm -f -- "$oldest" "$oldest.stamp" "$oldest.head" "$oldest.url"
        fi
    done
}

_in_use() {  # FILE; without flock: whatever was used within a week
    local fd free=yes
    if command -v flock > /dev/null; then
        { exec {fd}< "$1"; } 2> /dev/null || return 1
        flock -x -n "$fd" || free=no
        exec {fd}<&-
    else
        [ -z "$(find "$1.stamp" -mmin -10080 2> /dev/null)" ] || free=no
    fi
    [ "$free" = no ]
}

# --- rung 3: HTTP(S), each mirror in order
_rung_http() {
    local folder=$scratch/.image sha=${set_of[image.sha256]:-} limit file url deadline
    [ ${#image_urls[@]} -gt 0 ] || return 1
    _get limit limit.http 1800
    _now
    rung_began=$now_ms deadline=$((now_ms + limit * 1000))
    if [ -n "$cache_dir" ]; then
        if ! _lock_cache "$limit"; then
            _log "node cache: no lock within $limit s; the image is fetched for this job alone"
        elif [ -e "$cache_dir/$sha.sif" ] && _rung_cache; then
            _unlock_cache  # another job has fetched it meanwhile
            return 0
        elif _make_room "${set_of[image.size]:-0}"; then
            folder=$cache_dir
        else
            _log "node cache: no room within its limit; the image is fetched for this job alone"
        fi
    fi
    [ "$folder" = "$cache_dir" ] || { _unlock_cache; mkdir -p -- "$folder"; }
    file=$folder/$sha
    for url in "${image_urls[@]}"; do
        if _fetch "$url" "$file.part" "$deadline" && _check_download "$file.part" && _publish "$file"; then
            [ "$folder" != "$cache_dir" ] || _hold "$file.sif" || :
            _unlock_cache
            _served http "$url" "$file.sif"
            return 0
        fi
        _tried http "$url" "$fetch_result" "$fetch_damage"
    done
    _unlock_cache
    return 1
}

_check_download() {  # FILE -> fetch_result, fetch_damage; a wrong file is removed
    local want=${set_of[image.size]:-}
    _size "$1"
    image_bytes=${size:-0}
    fetch_damage=damaged
    if [ -n "$want" ] && [ "$size" != "$want" ]; then
        fetch_result="damaged: $size bytes, not $want"
    else
        _sha256 "$1"
        fetch_result="damaged: sha256 ${answer[0]}"
        if [ "${answer[0]}" = "${set_of[image.sha256]}" ]; then fetch_result=ok fetch_damage=''; return 0; fi
    fi
    rm -f -- "$1" "$1.head" "$1.url"
    return 1
}

_publish() {  # FILE: FILE.part, found good, gets its name
    if ! mv -f -- "$1.part" "$1.sif" || ! _write_stamp "$1.sif"; then fetch_result="cannot be written" fetch_damage=''; return 1; fi
    rm -f -- "$1.part.head" "$1.part.url"
}

# Fetches URL to PART, resuming what is there when the server says that it is the same file still. Tries again what may
# pass, waits as long as the server asks for. -> fetch_result, fetch_damage
_fetch() {  # URL PART DEADLINE_MS
    local url=$1 part=$2 tries=0 most status code wait
    fetch_damage=''
    while :; do
        tries=$((tries + 1)) most=4 status=0 code='' wait=$((1 << (tries - 1)))
        _now
        if [ "$3" -le $((now_ms + 1000)) ]; then fetch_result=timeout; return 1; fi
        if command -v curl > /dev/null; then _curl "$1" "$2" $((($3 - now_ms) / 1000)) || status=$?
        elif command -v wget > /dev/null; then _wget "$1" "$2" $((($3 - now_ms) / 1000)) || status=$?
        else fetch_result="neither curl nor wget"; return 1; fi
        _read_head "$part.head"
        [ "$status" != 0 ] || return 0
        case $status:$code in
            33:* | *:416) rm -f -- "$part" "$part.head" ;;  # it cannot be resumed: from the start
            23:*) fetch_result="cannot be written"; return 1 ;;
            137:*) fetch_result=timeout; return 1 ;;
            *:429 | *:5??) fetch_result=$code; [ -z "$retry_after" ] || wait=$retry_after ;;
            *:4??) fetch_result=$code; return 1 ;;
            6:* | 7:* | 4:*) fetch_result="not reached ($status)" most=2 ;;
            28:*) fetch_result="stalled" ;;
            *) fetch_result="failed ($status)" ;;
        esac
        _now
        if [ "$tries" -ge "$most" ] || [ $((now_ms + wait * 1000)) -ge "$3" ]; then return 1; fi
        _log "fetch: $url: ${fetch_result:-restarted}; again in $wait s"
        _sleep "$wait.$((RANDOM % 10))"
    done
}

_curl() {  # URL PART SECONDS
    local resume=() proxy=() before='' etag=''
    read -r before 2> /dev/null < "$2.url" || :
    _read_head "$2.head"
    if [ -s "$2" ] && [ "$before" = "$1" ] && [[ $etag == \"*\" ]]; then
        resume=(-C - -H "If-Range: $etag")
    else
        rm -f -- "$2" "$2.head"
        printf '%s\n' "$1" > "$2.url" || return 23
    fi
    [ -z "${set_of[http_proxy]:-}" ] || proxy=(--proxy "${set_of[http_proxy]}")
    _run $(($3 + 10)) curl -q -sS -f -L --max-redirs 10 --proto '=http,https' --proto-redir '=http,https' \
        --connect-timeout 20 --speed-limit 1000 --speed-time "${FERMIGRID_STALL:-30}" --max-time "$3" \
        ${proxy[@]+"${proxy[@]}"} ${resume[@]+"${resume[@]}"} -D "$2.head" -o "$2" -- "$1"
}

_wget() {  # URL PART SECONDS; from the start each time
    local proxy=()
    rm -f -- "$2" "$2.head"
    [ -z "${set_of[http_proxy]:-}" ] || proxy=(-e "http_proxy=${set_of[http_proxy]}" -e "https_proxy=${set_of[http_proxy]}")
    _run "$3" wget -nv -S --tries=1 --connect-timeout=20 --read-timeout="${FERMIGRID_STALL:-30}" \
        ${proxy[@]+"${proxy[@]}"} -O "$2" -- "$1" 2> "$2.head"
}

_read_head() {  # FILE of response headers -> code, etag, retry_after: those of the last response in it
    local line
    code='' etag='' retry_after=''
    [ -r "$1" ] || return 0
    while IFS= read -r line; do
        line=${line%$'\r'}
        line=${line#"${line%%[! ]*}"}
        case $line in
            HTTP/*) code=${line#* } code=${code%% *} etag='' retry_after='' ;;
            [Ee][Tt][Aa][Gg]:*) etag=${line#*:} etag=${etag# } ;;
            [Rr]etry-[Aa]fter:*) retry_after=${line#*:} retry_after=${retry_after# } ;;
        esac
    done < "$1"
    [[ $retry_after =~ ^[0-9]{1,5}$ ]] || retry_after=''
}

# --- rung 4: a registry, through the runtime
_rung_registry() {
    local reference=${set_of[image.registry]:-} limit file=$scratch/.image/pulled.sif status=0 size
    [ -n "$reference" ] || return 1
    _get limit limit.http 1800
    _now
    rung_began=$now_ms
    mkdir -p -- "$scratch/.image"
    _runtime_environment
    [ -z "${set_of[http_proxy]:-}" ] || runtime_env+=("http_proxy=${set_of[http_proxy]}" "https_proxy=${set_of[http_proxy]}")
    _run "$limit" env -i "${runtime_env[@]}" "$runtime" -q pull "$file" "$reference" >&2 || status=$?
    if [ "$status" != 0 ]; then _tried registry "$reference" "failed ($status)"; return 1; fi
    if ! _sif_is_whole "$file"; then _tried registry "$reference" "damaged: $sif_problem" damaged; return 1; fi
    _size "$file"
    image_bytes=$size
    _served registry "$reference" "$file"
}

# ==== binds and software
_wake() {  # PATH...; runs in a child that may hang: asking for what is inside wakes an automount -> a line for each
    local path
    for path in "$@"; do
        if [ -d "$path/." ] || [ -e "$path" ]; then printf 'there\n'; else printf 'missing\n'; fi
    done
}

_wake_all() {  # PATH... -> woken: there, missing or hanging, for each
    local limit
    woken=()
    _get limit limit.path 30
    while [ $# -gt 0 ]; do
        _ask "$limit" _wake "$@" || answer+=(hanging)
        woken+=("${answer[@]}")
        shift ${#answer[@]}
    done
}

_wake_binds() {  # the sources on the host, before the container starts
    local i
    for i in "${!software[@]}"; do
        bind_from+=("${software_from[i]}") bind_to+=("${software_to[i]}") bind_mode+=(ro) bind_required+=(yes)
        software_path[i]=${software_to[i]}
    done
    [ ${#bind_from[@]} = 0 ] || _check_binds kept "${bind_from[@]}"
}

_check_targets() {  # inside the image, or in a rehearsal: what should be bound must be there
    [ ${#bind_to[@]} = 0 ] || _check_binds used "${bind_to[@]}"
}

_check_binds() {  # RESULT PATH...: for each bind the path that must be there, and what to call it if it is
    local i good=$1 words woken=() paths=("${@:2}")
    _wake_all "${paths[@]}"
    for i in "${!paths[@]}"; do
        words="bind ${bind_from[i]}:${bind_to[i]}: ${paths[i]} is ${woken[i]} on $HOSTNAME"
        bind_result[i]=$good
        [ "${woken[i]}" != there ] || continue
        bind_result[i]=fatal
        [ "${bind_required[i]}" = no ] || _finish "$NO_BIND" "$words, and it is required"
        bind_result[i]=dropped
        _log "$words; it is optional: dropped"
    done
}

_check_software() {  # inside the image, or in a rehearsal: where the site has mounted it, or else where it comes from
    local i limit
    _get limit limit.path 30
    for i in "${!software[@]}"; do
        if ! _ask "$limit" _find_software "${software_to[i]}" "${software_from[i]}" || [ ${#answer[@]} = 0 ]; then
            if [ "$rehearsal" = true ]; then
                _log "software ${software[i]}: ${software_from[i]} is not here; the payload has to do with what this machine has"
                continue
            fi
            _finish "$NO_BIND" "software ${software[i]}: neither ${software_to[i]} nor ${software_from[i]} is there"
        fi
        software_path[i]=${answer[0]}
    done
}

_find_software() {  # TO FROM; runs in a child that may hang
    local entries=()
    shopt -s nullglob dotglob
    entries=("$1"/*)
    if [ ${#entries[@]} -gt 0 ]; then printf '%s\n' "$1"; elif [ -e "$2" ]; then printf '%s\n' "$2"; fi
}

# ==== secrets
_stage_secrets() {  # copies for this job alone, in memory where there is such a place; a guard removes them if the worker is killed
    local i base uuid bases=(/dev/shm "${XDG_RUNTIME_DIR:-}" "$scratch")
    [ ${#secret[@]} -gt 0 ] || return 0
    _phase secrets
    read -r uuid < /proc/sys/kernel/random/uuid
    if _is_private "${FERMIGRID_SECRETS:-}"; then bases=("$FERMIGRID_SECRETS" "$scratch"); fi  # who set it removes it
    for base in "${bases[@]}"; do
        if [ -z "$base" ] || [ ! -w "$base" ] || ! mkdir -m 700 -- "$base/fermigrid.$uuid" 2> /dev/null; then continue; fi
        secret_dir=$base/fermigrid.$uuid
        break
    done
    [ -n "$secret_dir" ] || _finish_or_full "$NO_SECRET" "no private folder can be made for secrets"
    secret_view=$secret_dir
    _guard_secrets
    _sweep_secrets "${secret_dir%/*}"
    for i in "${!secret[@]}"; do _copy_secret "${secret[i]}" "${secret_from[i]}"; done
    for i in "${!secret_point[@]}"; do _check_proxy "$i"; done
}

_is_private() {  # FOLDER: a folder of this user alone
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && [ "$(stat -c %a -- "$1" 2> /dev/null || :)" = 700 ]
}

_check_proxy() {  # INDEX of a secret.point: an X.509 proxy that has ended, where openssl can tell
    [ "${secret_point[$1]%%=*}" = X509_USER_PROXY ] && command -v openssl > /dev/null || return 0
    local file=$secret_dir/${secret[${secret_point_of[$1]}]}/${secret_point[$1]#*=}
    _ask 30 _copied openssl x509 -noout -checkend 0 -in "$file"
    [ "${answer[0]:-}" = yes ] || _finish "$EXPIRED" "the X.509 proxy of secret ${secret[${secret_point_of[$1]}]} has expired, or is none"
}

_guard_secrets() {  # its stdin ends when the worker does, whatever ended it
    exec {guard_fd}> >(trap - ERR; trap '' INT TERM QUIT HUP; exec > /dev/null 2>&1 3>&- 4>&-; read -r _ || :; rm -rf -- "$secret_dir")
}

_sweep_secrets() {  # FOLDER: what is there of workers that were killed together with their guard; a living one holds a lock
    local folder fd
    command -v flock > /dev/null || return 0
    exec {secret_fd}< "$secret_dir"
    flock -x -n "$secret_fd" || return 0
    while IFS= read -r folder; do
        { exec {fd}< "$folder"; } 2> /dev/null || continue
        ! flock -x -n "$fd" || rm -rf -- "$folder" || :
        exec {fd}<&-
    done < <(find "$1" -maxdepth 1 -name 'fermigrid.*-*' -user "$EUID" -mmin +1 2> /dev/null)
}

_copy_secret() {  # NAME FROM
    local limit to=$secret_dir/$1
    _get limit limit.path 30
    if ! _ask "$limit" _wake "$2" || [ "${answer[0]:-}" != there ]; then
        _finish "$NO_SECRET" "secret $1: $2 is not there on $HOSTNAME"
    fi
    mkdir -m 700 -- "$to"
    if [ -d "$2" ]; then set -- "$1" "$2/."; fi
    if ! ( umask 077; _run_quietly "$limit" cp -rL --no-preserve=mode -- "$2" "$to/" ); then
        _finish "$NO_SECRET" "secret $1: $2 cannot be copied"
    fi
}

_run_quietly() { _ask "$1" _copied "${@:2}" && [ "${answer[0]:-}" = yes ]; }  # SECONDS COMMAND...

_copied() { if "$@" > /dev/null; then printf 'yes\n'; fi; }

_remove_secrets() {
    [ -z "$secret_dir" ] || rm -rf -- "$secret_dir" 2> /dev/null || :
    [ -z "$guard_fd" ] || exec {guard_fd}>&-
    guard_fd=''
}

# ==== stage-in
_unpack_bundle() {
    [ -n "${set_of[code]:-}" ] || return 0
    _run 0 tar -xzf "$scratch/${set_of[code]}" -C "$work" --no-same-owner >&2 ||
        _finish_or_full "$INTERNAL" "the bundle ${set_of[code]} cannot be unpacked"
}

_stage_in() {
    local i k staged problems
    [ ${#in_name[@]} = 0 ] || _phase stage_in
    for i in "${!in_name[@]}"; do
        staged='' problems=''
        for k in "${!in_source[@]}"; do
            [ "${in_source_of[k]}" = "$i" ] || continue
            if _stage_input "$i" "${in_source[k]}"; then staged=yes; break; fi
            _log "stage-in: ${in_name[i]} from ${in_source[k]}: $in_problem"
            problems+="${problems:+; }${in_source[k]}: $in_problem"
        done
        [ -n "$staged" ] || _finish_or_full "$STAGE_IN" "input ${in_name[i]}: ${problems:-it has no source}"
    done
}

_stage_input() {  # INDEX SOURCE -> in_problem
    local to=$work/${in_name[$1]} size began
    _now
    began=$now_ms
    [[ ${in_name[$1]} != */* ]] || mkdir -p -- "${to%/*}"
    rm -f -- "$to.part"
    if ! _bring "$2" "$to.part" || ! _check_input "$1" "$to.part"; then
        ! _scratch_is_full || _finish "$SCRATCH_FULL" "scratch is full ($scratch) with input ${in_name[$1]}: $in_problem"
        rm -f -- "$to.part" "$to.part.head" "$to.part.url"
        return 1
    fi
    rm -f -- "$to.part.head" "$to.part.url"
    if ! mv -f -- "$to.part" "$to"; then in_problem="cannot be written"; return 1; fi
    _now
    _seconds $((now_ms - began))
    _object name "${in_name[$1]}" source "$2" @bytes "$size" sha256 "${answer[0]}" @seconds "$seconds"
    json_inputs+=${json_inputs:+, }$object
}

_bring() {  # SOURCE FILE -> in_problem
    local limit path=$1 status=0
    in_problem=''
    case $1 in
        http://* | https://*)
            _get limit limit.http 1800
            _now
            _fetch "$1" "$2" $((now_ms + limit * 1000)) || { in_problem=$fetch_result; return 1; } ;;
        root://* | xroot://*)
            command -v xrdcp > /dev/null || { in_problem="there is no xrdcp"; return 1; }
            _get limit limit.http 1800
            _run "$limit" _xrdcp "$1" "$2" >&2 || status=$?
            [ "$status" = 0 ] || { in_problem="xrdcp failed ($status)"; return 1; } ;;
        /* | file:///* | file://localhost/*)
            path=${path#file://localhost} path=${path#file://}
            [ "$path" = "$1" ] || { path=${path//\\/\\\\}; printf -v path '%b' "${path//%/\\x}"; }
            _get limit limit.path 30
            _ask "$limit" _wake "$path" || { in_problem="no answer within $limit s"; return 1; }
            [ "${answer[0]}" = there ] || { in_problem="not there"; return 1; }
            _run 0 cp -- "$path" "$2" >&2 || { in_problem="cannot be copied"; return 1; } ;;
        *) in_problem="no way to fetch this kind of source"; return 1 ;;
    esac
}

_xrdcp() {  # URL FILE; runs in a child. A dead server must not hold the job for ten minutes
    local i assignment
    export XRD_CONNECTIONWINDOW=30 XRD_CONNECTIONRETRY=2 XRD_REQUESTTIMEOUT=120 XRD_STREAMTIMEOUT=60 XRD_TIMEOUTRESOLUTION=5
    for assignment in ${secret_set[@]+"${secret_set[@]}"}; do export "${assignment%%=*}=${assignment#*=}"; done
    for i in "${!secret_point[@]}"; do
        export "${secret_point[i]%%=*}=$secret_dir/${secret[${secret_point_of[i]}]}/${secret_point[i]#*=}"
    done
    exec xrdcp --nopbar --force -- "$1" "$2"
}

_check_input() {  # INDEX FILE -> size, answer (its digest), in_problem
    local want
    _size "$2"
    want=${in_bytes[$1]}
    if [ -n "$want" ] && [ "$size" != "$want" ]; then in_problem="$size bytes, not $want"; return 1; fi
    want=${in_adler[$1]}
    if [ -n "$want" ]; then
        _adler32 "$2"
        if [ -z "$adler" ]; then
            _log "stage-in: the adler32 of ${in_name[$1]} is not checked: there is no tool for it"
        elif [ $((16#$adler)) != $((16#$want)) ]; then
            in_problem="adler32 $adler, not $want"
            return 1
        fi
    fi
    _sha256 "$2"
    want=${in_sha[$1]}
    if [ -n "$want" ] && [ "${answer[0]}" != "$want" ]; then in_problem="sha256 ${answer[0]}, not $want"; return 1; fi
}

_adler32() {  # FILE -> adler; empty without a tool
    local script='import sys, zlib
a = 1
for b in iter(lambda f=open(sys.argv[1], "rb"): f.read(1 << 20), b""): a = zlib.adler32(b, a)
print("%08x" % (a & 0xffffffff))'
    adler=''
    if command -v xrdadler32 > /dev/null; then _ask 0 xrdadler32 "$1" || :
    elif command -v python3 > /dev/null; then _ask 0 python3 -c "$script" "$1" || :
    else return 0; fi
    adler=${answer[0]:-} adler=${adler%% *}
    [[ $adler =~ ^[0-9a-f]{1,8}$ ]] || adler=''
}

# ==== the payload
declare -A env_index=()
env_names=() env_values=()
runtime_env=()

_set_env() {  # NAME VALUE; the last one counts
    local i=${env_index[$1]:-${#env_names[@]}}
    env_index[$1]=$i env_names[i]=$1 env_values[i]=$2
}

_assign_env() { local assignment; for assignment in "$@"; do _set_env "${assignment%%=*}" "${assignment#*=}"; done; }  # NAME=value...

_payload_environment() {  # the allow-list, the same in each mode
    local i rest value user=${USER:-}
    [ -n "$user" ] || user=$(id -un 2> /dev/null) || user=$EUID
    _assign_env "HOME=$view/.fermigrid/home" "TMPDIR=$view/.fermigrid/tmp" "USER=$user" "LOGNAME=$user" LANG=C.UTF-8
    for i in "${!software_env[@]}"; do
        [ -n "${software_path[${software_env_of[i]}]}" ] || continue  # a rehearsal without it
        rest=${software_env[i]#*=} value=''
        while [[ $rest == *'{path}'* ]]; do
            value+=${rest%%'{path}'*}${software_path[${software_env_of[i]}]}
            rest=${rest#*'{path}'}
        done
        _set_env "${software_env[i]%%=*}" "$value$rest"
    done
    _assign_env ${env_list[@]+"${env_list[@]}"} ${secret_set[@]+"${secret_set[@]}"}
    for i in "${!secret_point[@]}"; do
        rest=${secret_point[i]#*=} value=$secret_view/${secret[${secret_point_of[i]}]}
        [ "$rest" = . ] || value+=/$rest
        _set_env "${secret_point[i]%%=*}" "$value"
    done
    _assign_env ${row_env[@]+"${row_env[@]}"}
    _assign_env "FERMIGRID_CAMPAIGN=${set_of[campaign]}" "FERMIGRID_STEP=${set_of[step]}" "FERMIGRID_RUN=$row_run" \
        "FERMIGRID_PIECE=$row_piece" "FERMIGRID_JOB=$job" "FERMIGRID_SITE=${set_of[site]}" "FERMIGRID_ATTEMPT=$attempt" \
        "FERMIGRID_BATCH=$batch" "FERMIGRID_SUMMARY=$view/.fermigrid/summary"
}

_quote() {  # TEXT -> quoted, one word of any Bourne shell
    local q="'\\''"
    quoted="'${1//\'/$q}'"
}

# What runs first on the payload's side: proves that the container is the right one and is as it should be, leaves the word
# for it, and becomes the payload. So nothing of a person goes through a runtime's own idea of quoting.
_write_launcher() {  # COMMAND...
    local quoted i
    {
        _quote "$view"
        printf 'cd %s || exit 126\nsay() { echo "$*" > .fermigrid/started.%s; }\n' "$quoted" "$side"
        [ "$container" = none ] || [ "$side" = inside ] || _write_proofs
        printf 'read -r first _ count < /proc/self/uid_map || :\nsay "ok $first $count" || exit 126\n'
        if [ "$container" = none ]; then
            _quote "$host_path"
            printf 'export PATH=%s\n' "$quoted"
        elif [ "$container" = site ] || [ "$side" = inside ]; then
            # the environment was emptied: the image's own comes back as the runtime would make it
            printf '%s\n' 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
                'for script in /.singularity.d/env/*.sh; do [ ! -r "$script" ] || . "$script"; done'
        fi
        printf 'unset %s\n' 'first count script PS1 PROMPT_COMMAND TERM SHLVL OLDPWD LC_ALL' \
            'APPTAINER_APPNAME APPTAINER_BIND APPTAINER_COMMAND APPTAINER_CONTAINER APPTAINER_ENVIRONMENT APPTAINER_NAME' \
            'SINGULARITY_APPNAME SINGULARITY_BIND SINGULARITY_COMMAND SINGULARITY_CONTAINER SINGULARITY_ENVIRONMENT SINGULARITY_NAME'
        for i in "${!env_names[@]}"; do
            _quote "${env_values[i]}"
            printf 'export %s=%s\n' "${env_names[i]}" "$quoted"
        done
        printf 'exec'
        for i in "$@"; do _quote "$i"; printf ' %s' "$quoted"; done
        printf '\n'
    } > "$control/launch.sh" || _finish_or_full "$INTERNAL" "the launcher cannot be written"
}

_write_proofs() {  # the image's marker, and that each bind shows what it should: a runtime may ignore one silently
    local quoted i inode
    if [ -n "${set_of[image.marker]:-}" ]; then
        _quote "${set_of[image.marker]}"
        printf 'found=; [ ! -r %s ] || read -r found < %s\n' "$MARKER_FILE" "$MARKER_FILE"
        printf '[ "$found" = %s ] || { say "image its marker is $found"; exit 1; }\n' "$quoted"
    fi
    for i in "${!bind_from[@]}"; do
        [ "${bind_result[i]:-}" = kept ] || continue
        _quote "${bind_to[i]}"
        printf '[ -e %s ] || { say bind %s; exit 1; }\n' "$quoted" "$quoted"
        inode=$(stat -L -c %d:%i -- "${bind_from[i]}" 2> /dev/null) || continue
        printf 'found=$(stat -L -c %%d:%%i -- %s 2> /dev/null) && [ "$found" != %s ] && { say bind %s; exit 1; }\n' "$quoted" "$inode" "$quoted"
    done
    printf 'unset found\n'
}

_runtime_environment() {  # nothing of the host but what a runtime needs: no binds, no loader paths by environment
    local temporary=$scratch/.image/tmp name
    mkdir -p -- "$temporary"
    runtime_env=("PATH=$PATH" "HOME=${HOME:-$scratch}" "USER=${USER:-}" "LANG=C" "TMPDIR=$temporary")
    for name in APPTAINER SINGULARITY; do runtime_env+=("${name}_TMPDIR=$temporary" "${name}_CACHEDIR=$temporary"); done
    [ -z "${XDG_RUNTIME_DIR:-}" ] || runtime_env+=("XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR")
}

_starts_container() { [ "$side" = run ] && [[ $container == worker || $container == nested ]]; }

_container_command() {  # -> command, up to the image
    local i to
    _runtime_environment
    command=(env -i "${runtime_env[@]}" "$runtime" -q exec --cleanenv --contain --no-home --pwd "$view"
        --workdir "$scratch/.session" --bind "$work:$view")
    if [ -n "$inner_runs" ]; then
        command+=(--bind "$scratch:$view/.fermigrid/scratch")
        _bind_output_root
    fi
    [ -z "$secret_dir" ] || command+=(--bind "$secret_dir:$secret_view:ro")
    for i in "${!bind_from[@]}"; do
        [ "${bind_result[i]}" = kept ] || continue
        to=${bind_to[i]}
        [[ $to != "$view"/* ]] || mkdir -p -- "$work/${to#"$view"/}"
        command+=(--bind "${bind_from[i]}:$to:${bind_mode[i]}")
    done
    mkdir -p -- "$scratch/.session"
}

_bind_output_root() {  # order wrapper-inside publishes from inside the container
    local root=${set_of[output.root]:-} i
    [ "${set_of[output.kind]}" = posix ] || return 0
    for i in "${!bind_from[@]}"; do
        [ "${bind_mode[i]}" != rw ] || [ "${bind_from[i]}" != "${bind_to[i]}" ] || [[ $root/ != "${bind_to[i]}"/* ]] || return 0
    done
    command+=(--bind "$root:$root:rw")
}

_try_image() {  # starts the image once with nothing in it -> words, what the runtime said when it did not
    local last
    _runtime_environment
    words="no answer within 60 s"
    _ask 60 _trial || return 1
    last=$((${#answer[@]} - 1))
    [ "${answer[last]}" != 0 ] || return 0
    words="status ${answer[last]}"
    unset "answer[last]"
    words="${answer[*]-} ($words)"
    return 1
}

_trial() {  # runs in a child -> what the runtime said, and last its status
    local status=0
    env -i "${runtime_env[@]}" "$runtime" -q exec --cleanenv --contain --no-home --pwd / "$image" /bin/sh -c : 2>&1 < /dev/null || status=$?
    printf '%s\n' "$status"
}

_close_inherited() {  # in the child: signals are its own from here, open files the worker's alone
    local fd
    trap - ERR PIPE
    printf 'ready\n' >&"$pipe_fd"
    for fd in "$version_fd" "$cache_fd" "$lock_fd" "$guard_fd" "$secret_fd" "$pipe_fd"; do
        [ -z "$fd" ] || exec {fd}>&-
    done
}

_launch() {  # COMMAND... ; runs in a child
    _close_inherited
    exec "$@"
}

_launch_bare() {  # in this container, or in a rehearsal: with an empty environment
    _close_inherited
    exec -c "$BASH" "$control/launch.sh"
}

_start_payload() {  # COMMAND... -> status
    local group line=''
    status=0
    rm -f -- "$control/started.$side"
    set -m
    "$@" < /dev/null 3>&- 4>&- &
    group=$!
    set +m
    [ "$side" = run ] || printf '%s\n' "$group" > "$control/group" || :
    while [ "$line" != ready ]; do  # until then a signal would be lost in the child
        read -r -t 10 -u "$pipe_fd" line || break
    done
    payload_group=$group
    _await "$group" || status=$?
    kill -KILL -- "-$group" 2> /dev/null || :  # what the payload left behind
    _kill_inner
    payload_group=''
}

_kill_inner() {  # the inner worker's payload has a group of its own
    local group=''
    [ -n "$inner_runs" ] && [ -r "$control/group" ] || return 0
    read -r group < "$control/group" || :
    [[ ! $group =~ $NUMBER ]] || kill -KILL -- "-$group" 2> /dev/null || :
}

_run_payload() {
    local status=0 tries=0 said='' command=()
    _phase payload
    while :; do
        tries=$((tries + 1))
        if _starts_container; then
            _container_command
            _start_payload _launch "${command[@]}" "$image" /bin/sh "$view/.fermigrid/launch.sh"
        else
            _start_payload _launch_bare
        fi
        [ -z "$inner_runs" ] || _take_inner_report
        [ ! -r "$control/started.$side" ] || read -r said < "$control/started.$side" || :
        case $said in
            'ok '*) break ;;
            image*) _finish "$IMAGE_DAMAGED" "the container is not the image ${set_of[image]}: ${said#image }" ;;
            bind*) _fail_bind "${said#bind }" ;;
        esac
        if [ ${#signals[@]} != 0 ] && [ "$status" -gt 128 ]; then
            if _ending_signal; then status=$((128 + ending)); fi
            _finish "$status" "ended by signal ${signals[*]} before the payload had started"
        fi
        if [ "$tries" != 1 ] || ! _heal_image; then _container_failed "$status"; fi
    done
    if [ "$container" != none ]; then _find_userns "${said#ok }"; fi
    [ -z "$inner_runs" ] || _inner_failed "$status"
    started_payload=true payload_exit=$status
    if [ "$status" -gt 128 ] && [ "$status" -le 192 ]; then payload_signal=$((status - 128)); fi
    _judge_payload "$status"
}

_judge_payload() {  # STATUS of the payload
    local status=$1
    _log "payload: exit $status"
    if _ending_signal; then
        [ "$status" != 0 ] || status=$((128 + ending))
        _finish_mapped "$status" "the payload was told to end by signal ${signals[*]}"
    fi
    [ "$status" != 0 ] || return 0
    if _scratch_is_full; then _finish "$SCRATCH_FULL" "the payload ended with exit code $status, and scratch is full ($scratch)"; fi
    if [ "$payload_signal" != null ]; then _finish_mapped "$status" "the payload was killed by signal $payload_signal"; fi
    _finish_mapped "$status" "the payload ended with exit code $status"
}

_finish_mapped() {  # STATUS WORDS: a payload's 80-99 would be taken for the worker's own
    if [ "$1" -ge 80 ] && [ "$1" -le 99 ]; then _finish 79 "$2"; fi
    _finish "$1" "$2"
}

_fail_bind() {  # TARGET
    local i
    for i in "${!bind_to[@]}"; do [ "${bind_to[i]}" != "$1" ] || bind_result[i]=fatal; done
    _finish "$NO_BIND" "the runtime did not bind $1: in the container it is something else or missing"
}

_heal_image() {  # a container that did not start: was the cached image damaged? Then another one is fetched
    [ "$rung" = cache ] && [ ${#image_urls[@]} -gt 0 ] || return 1
    _sha256 "$image"
    [ "${answer[0]}" != "${set_of[image.sha256]}" ] || return 1
    _log "the cached image $image is damaged: removed"
    rm -f -- "$image" "$image.stamp"
    _phase image
    _climb_ladder
    _phase payload
}

_container_failed() {  # STATUS: a failure of the runtime is never charged to the payload
    local words='' code=$NO_IMAGE
    _phase image
    _starts_container || _finish_or_full "$INTERNAL" "the payload could not be launched (status $1)"
    if _try_image; then words="the image starts, but not with this job's binds"; fi
    case $words in
        *'image format not recognized'* | *'corrupt'* | *'quashfs'*) code=$IMAGE_DAMAGED ;;
        *namespace* | *setuid* | *'not permitted'* | *'max_user'*) code=$NO_RUNTIME ;;
        *'with this job'*) code=$NO_BIND ;;
    esac
    _finish_or_full "$code" "$runtime could not start the container from $image (status $1): $words"
}

# ==== order wrapper-inside
# The outer worker has done secrets, image and binds. It writes down what it knows and starts itself again in the container;
# that one does the rest and leaves its report as a file. Only the outer one prints, so that there is a report in every case.

_run_inner() {
    local name self=$0
    inner_runs=yes
    [[ $self == /* ]] || self=$scratch/$self
    cp -- "$self" "$control/worker.sh"
    _collect_runtime
    _describe_image
    _describe_binds
    {
        printf '%s\n' "job=$job" "shard_file=$shard_file" "row_number=$row_number" "batch=$batch" "attempt=$attempt" "start=$start" \
            "begin=$begin" "begin_ms=$begin_ms" "where=$where" "container=$container" "secret_view=$secret_view" "view=$view" \
            "userns=$userns" "runtime_name=$runtime_name" "runtime_version=$runtime_version" "HOSTNAME=$HOSTNAME" \
            "json_image=$json_image" "json_binds=$json_binds"
        for name in "${!spent[@]}"; do printf 'spent.%s=%s\n' "$name" "${spent[$name]}"; done
    } > "$control/outer" || _finish_or_full "$INTERNAL" "cannot write for the inner worker"
    _write_launcher /bin/bash "$view/.fermigrid/worker.sh" inside
    _run_payload  # ends with the inner worker's report, or with _inner_failed
}

_take_inner_report() {
    local code=''
    [ -r "$control/report" ] || return 0
    { read -r code && IFS= read -r json_report; } < "$control/report" || json_report=''
    [[ -n $json_report && $code =~ $NUMBER ]] || return 0
    finishing=yes exit_code=$code
    exit "$code"
}

_inner_failed() {  # STATUS
    json_report=''
    if _ending_signal; then _finish $((128 + ending)) "the container was ended by signal ${signals[*]}"; fi
    if [ "$1" = 126 ] || [ "$1" = 127 ]; then
        _finish "$NO_IMAGE" "the image cannot run the worker (status $1): order wrapper-inside needs bash and coreutils in it"
    fi
    _finish_or_full "$INTERNAL" "the container ended with status $1 and the worker in it left no report"
}

_main_inside() {
    local line key value
    side=inside
    while IFS= read -r line; do
        key=${line%%=*} value=${line#*=}
        case $key in
            spent.*) spent[${key#*.}]=$value ;;
            *) printf -v "$key" '%s' "$value" ;;
        esac
    done < .fermigrid/outer
    scratch=$view/.fermigrid/scratch
    work=$scratch/work control=$scratch/work/.fermigrid secret_dir=$secret_view
    _now
    phase_ms=$now_ms
    _set_traps
    cd -- "$scratch"
    _parse_settings job.env
    _parse_row "$shard_file" "$row_number"
    for line in "${!software[@]}"; do software_path[line]=${software_to[line]}; done
    _do_job
}

# ==== stage-out
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

# ==== the report
# Other bytes than these sequences become U+FFFD: JSON is UTF-8.
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
        [[ $line == *:* && $key =~ ^[A-Za-z][A-Za-z0-9_.-]{0,63}$ ]] || continue
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
    [ "$rung" != cache ] && [ "$rung" != http ] || digest=${set_of[image.sha256]}
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
    local i name parts_of=() lines=() phases summary runtime words="${signals[*]-}"
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
    for i in "${!summary_keys[@]}"; do lines+=("${summary_keys[i]}" "${summary_values[i]}"); done
    _object ${lines[@]+"${lines[@]}"}
    summary=$object
    _object name "$runtime_name" version "$runtime_version" @userns "$userns"
    runtime=$object
    _object @format 1 job "$job" batch "$batch" attempt "$attempt" @start "$start" site "${set_of[site]:-}" host "${HOSTNAME:-}" \
        where "$where" container "$container" @rehearsal "$rehearsal" order "${set_of[order]:-wrapper-outside}" \
        @started_payload "$started_payload" @image "$json_image" @runtime "$runtime" @binds "[$json_binds]" @phases "$phases" \
        @exit "$exit_code" @payload_exit "$payload_exit" @signal "$payload_signal" @signals "[${words:+\"${words// /\", \"}\"}]" \
        message "${message:0:MESSAGE_BYTES}" @inputs "[$json_inputs]" @outputs "[$json_outputs]" @summary "$summary" \
        @begin "$begin" @end $((begin + (now_ms - begin_ms) / 1000))
    json_report=$object
}

_print_report() {
    printf '\n@@FERMIGRID 1 %d %s\n' "${#json_report}" "$json_report"
}

# ==== the end
_on_exit() {
    local status=$? group wait=0
    [ "$BASHPID" = "$$" ] || return 0
    trap - ERR EXIT
    set +Eeu
    exec 1>&3 2>&4
    for group in HUP INT TERM QUIT USR1 USR2 XCPU PIPE; do trap '' "$group"; done
    [ -n "$exit_code" ] || { exit_code=$INTERNAL message="internal error: the worker ended by itself with status $status"; }
    for group in "$payload_group" "$child"; do
        [ -z "$group" ] || { disown "$group"; kill -KILL -- "-$group"; } 2> /dev/null
    done
    [ -z "$asked" ] || kill -KILL "$asked" 2> /dev/null
    if [ -z "$json_report" ]; then
        [ "$exit_code" = 0 ] || _log "exit $exit_code: $message"
        _read_summary
        _describe
    fi
    if [ "$side" = inside ]; then
        [ ${#parts[@]} = 0 ] || rm -f -- "${parts[@]}"
        printf '%s\n%s\n' "$exit_code" "$json_report" > "$control/report.new" && mv -f -- "$control/report.new" "$control/report"
        exit "$exit_code"
    fi
    _kill_inner
    _remove_secrets
    _clean
    case $exit_code in "$NO_RUNTIME" | "$NO_IMAGE" | "$CVMFS_BROKEN") _get wait backoff 0 ;; esac
    [ "$wait" = 0 ] || _log "then $wait s of waiting, so that this node does not take job after job"
    _print_report || { sleep 1; _print_report; }
    _back_off
    exit "$exit_code"
}

_clean() {  # before the report, so that a full disk has room for it
    [ ${#parts[@]} = 0 ] || rm -f -- "${parts[@]}" 2> /dev/null
    _unlock_cache
    [ -n "$scratch" ] || return 0
    [ "$exit_code" = 0 ] || rm -rf -- "$scratch/out" 2> /dev/null
    [ "$exit_code" = 0 ] || mkdir -- "$scratch/out" 2> /dev/null
    [ -n "${FERMIGRID_KEEP:-}" ] || rm -rf -- "$work" "$scratch/.image" "$scratch/.session" 2> /dev/null
}

_back_off() {  # a node that cannot do the job at all must not empty the queue
    [ "$wait" -gt 0 ] || return 0
    trap 'exit "$exit_code"' HUP INT TERM QUIT
    sleep "$wait" > /dev/null 2>&1 3>&- 4>&- &
    wait "$!"
}

_set_traps() {  # and keeps the true stdout and stderr for the end, which may come in the middle of a redirection
    exec 3>&1 4>&2 {pipe_fd}<> <(:)
    trap _on_exit EXIT
    trap '_on_error "$?" "${FUNCNAME[0]:-main}" "$LINENO"' ERR
    trap '_on_signal HUP 1' HUP
    trap '_on_signal INT 2' INT
    trap '_on_signal QUIT 3' QUIT
    trap '_on_signal TERM 15' TERM
    trap '_on_signal USR1 10' USR1
    trap '_on_signal USR2 12' USR2
    trap '_on_signal XCPU 24' XCPU
    trap '' PIPE
}

_make_folders() {
    work=$scratch/work control=$scratch/work/.fermigrid
    mkdir -p -- "$scratch/out" "$control/home" "$control/tmp" "$control/secrets" "$control/scratch" ||
        _finish_or_full "$INTERNAL" "folders cannot be made in $scratch"
}

_do_job() {  # on the side of the container that the order says
    _unpack_bundle
    _stage_in
    _phase setup
    _payload_environment
    _write_launcher "${args[@]}"
    _run_payload
    _stage_out
    _finish 0 ""
}

_main() {
    case ${1:-} in
        run) [ $# = 5 ] || { printf 'usage: worker.sh run JOB SHARDFILE ROW BATCH\n' >&2; exit 2; } ;;
        inside) _main_inside ;;
        *) printf 'usage: worker.sh run JOB SHARDFILE ROW BATCH\n' >&2; exit 2 ;;
    esac
    job=$2 shard_file=$3 row_number=$4 batch=$5 scratch=$PWD
    begin=${EPOCHSECONDS:-}
    [ -n "$begin" ] || begin=$(date +%s)
    _now
    begin_ms=$now_ms phase_ms=$now_ms
    _set_traps
    _need "$TAME" "$job" "job"
    _need "$TAME" "$shard_file" "shard file"
    _need "$TAME" "$batch" "batch"
    _need '^[1-9][0-9]{0,8}$' "$row_number" "row"
    _find_start
    _log "job $job, batch $batch, on $HOSTNAME in $scratch"
    [[ $scratch != *[:,]* ]] || _bad "the scratch folder $scratch has a colon or comma in its name"
    _make_folders
    _parse_settings job.env
    attempt=g${set_of[generation]}.${attempt#*.}
    _check_digests
    _parse_row "$shard_file" "$row_number"
    _find_where
    _stage_secrets
    _phase setup
    _make_container_ready
    _phase setup
    view=$work
    if _starts_container; then
        _get view container.workdir /srv
        secret_view=$view/.fermigrid/secrets
        if [ "${set_of[order]:-}" = wrapper-inside ]; then _run_inner; fi
    fi
    _do_job
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then _main "$@"; fi
