# shellcheck shell=bash
# Order wrapper-inside. The outer worker has done secrets, image and binds. It writes down what it knows and starts itself again
# in the container; that one does the rest and leaves its report as a file. Only the outer one prints, so that there is a report
# in every case.

_run_inner() {
    local self=$0
    inner_runs=yes
    [[ $self == /* ]] || self=$scratch/$self
    cp -- "$self" "$control/worker.sh"
    _write_launcher /bin/bash -p "$view/.fermigrid/worker.sh" inside
    _run_payload  # ends with the inner worker's report, or with _inner_failed
}

_tell_inner() {  # before each start, because what it says may have changed
    local name
    _collect_runtime
    _describe_image
    _describe_binds
    {
        printf '%s\n' "job=$job" "shard_file=$shard_file" "row_number=$row_number" "batch=$batch" "attempt=$attempt" "start=$start" \
            "begin=$begin" "begin_ms=$begin_ms" "where=$where" "container=$container" "secret_view=$secret_view" "view=$view" \
            "unsquash=$unsquash" "runtime_name=$runtime_name" "runtime_version=$runtime_version" "HOSTNAME=$HOSTNAME" \
            "json_image=$json_image" "json_binds=$json_binds" "json_cvmfs=$json_cvmfs"
        for name in "${!spent[@]}"; do printf 'spent.%s=%s\n' "$name" "${spent[$name]}"; done
    } > "$control/outer" || _end_or_full "$INTERNAL" "cannot write for the inner worker"
    json_image='' json_binds=''
}

_take_inner_report() {
    local code='' status user system elapsed
    [ -r "$control/report" ] || return 0
    { read -r code status user system elapsed && IFS= read -r json_report; } < "$control/report" || json_report=''
    # a payload may write there, and arithmetic runs what a word contains
    [[ -n $json_report && "$code $status $user $system $elapsed" =~ ^[0-9]{1,3}\ (null|[0-9]{1,3})(\ -?[0-9]{1,15}){3}$ ]] || return 0
    finishing=yes exit_code=$code payload_exit=$status user_ms=$user system_ms=$system spent[payload]=$elapsed
    exit "$code"
}

_inner_failed() {  # STATUS
    json_report=''
    if _ending_signal; then _finish $((128 + ending)) "the container was ended by signal $ends"; fi
    ! _find_broken || _finish "$CVMFS_BROKEN" "the container ended with status $1$broken"
    if [ "$1" = 126 ] || [ "$1" = 127 ]; then
        _finish "$NO_IMAGE" "the image cannot run the worker (status $1): order wrapper-inside needs bash and coreutils in it"
    fi
    _end_or_full "$INTERNAL" "the container ended with status $1 and the worker in it left no report"
}

_kill_inner() {  # the inner worker's payload has a group of its own
    local group=''
    [ -z "$oci" ] && [ -r "$control/group" ] || return 0  # podman's numbers are of another namespace
    read -r group < "$control/group" || :
    [[ ! $group =~ ^[1-9][0-9]+$ ]] || kill -KILL -- "-$group" 2> /dev/null || :
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
