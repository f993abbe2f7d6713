# shellcheck shell=bash
# The payload: its environment, the launcher that proves the container, signals, and how it ended.

declare -A env_index=()
env_names=() env_values=()

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
    [ -z "$messages" ] || _set_env PIPELINE_SUMMARY "$view/.fermigrid/summary"
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
        printf 'set --'
        for i in "$@"; do _quote "$i"; printf ' %s' "$quoted"; done
        printf '\n'
        [ -z "$messages" ] || [ -n "$inner_runs" ] || _write_tools "$1"
        printf 'exec "$@"\n'
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

_close_inherited() {  # in the child: signals are its own from here, open files the worker's alone
    local fd
    trap - ERR PIPE
    printf 'ready\n' >&"$pipe_fd"
    for fd in "$version_fd" "$cache_fd" "$lock_fd" "$guard_fd" "$secret_fd" "${start_fd:-}" "$pipe_fd"; do
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

_cpu() {  # + or -: the seconds of the children that have ended -> user_ms, system_ms; bash counts them, no image needs time(1)
    local line count=0
    times >&"$pipe_fd"
    while [ "$count" != 2 ] && read -r -t 1 -u "$pipe_fd" line; do [[ $line != *m*s ]] || count=$((count + 1)); done
    [[ ${line:-} =~ ^([0-9]+)m([0-9]+)\.([0-9]{3})s\ ([0-9]+)m([0-9]+)\.([0-9]{3})s$ ]] || return 0
    set -- "$1" "${BASH_REMATCH[@]:1}"
    user_ms=$((user_ms $1 ($2 * 60000 + 10#$3$4))) system_ms=$((system_ms $1 ($5 * 60000 + 10#$6$7)))
}

_start_payload() {  # COMMAND... -> status
    local group line=''
    status=0
    rm -f -- "$control/started.$side"
    user_ms=0 system_ms=0
    _cpu -
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
    _cpu +
    kill -KILL -- "-$group" 2> /dev/null || :  # what the payload left behind
    [ -z "$inner_runs" ] || _kill_inner
    payload_group=''
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
