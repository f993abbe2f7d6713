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
    [ -n "$user" ] || user=$(exec id -un 2> /dev/null) || user=$EUID
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
    _assign_env ${env_list[@]+"${env_list[@]}"}
    [ ${#secret[@]} = 0 ] || _point_to_secrets
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
    [ -z "$messages" ] || [ -n "$inner_runs" ] || _write_tools "$1"
    {
        _quote "$view"
        printf 'cd %s || exit 126\nsay() { echo "$*" > .fermigrid/started.%s; }\n' "$quoted" "$side"
        printf '%s\n' 'layer=- mounted=' 'while read -r _ _ _ _ point mode rest; do' 'mounted="$mounted|$point $mode|"' \
            '[ "$point" != / ] || { layer=${rest#*- }; layer=${layer%% *}; }' 'done < /proc/self/mountinfo'
        printf 'read -r first _ count < /proc/self/uid_map || :\n'
        ! _starts_container || printf '. ./.fermigrid/proofs\n'
        printf 'say "ok $first $count $layer" || exit 126\n'
        if [ "$container" = none ] || [ "$side" = inside ]; then
            _quote "$host_path"
            printf 'export PATH=%s\n' "$quoted"
        elif [ "$container" = site ]; then
            printf 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n'
        fi
        if [ "$container" = site ] || [ "$side" = inside ] || _is_podman; then  # the image's own, as Apptainer would make it
            printf 'for script in /.singularity.d/env/*.sh; do [ ! -r "$script" ] || . "$script"; done\n'
        fi
        printf 'unset %s\n' 'first count point mode rest layer mounted found why script container HOSTNAME PS1 PROMPT_COMMAND TERM SHLVL OLDPWD' \
            LC_ALL {APPTAINER,SINGULARITY}_{APPNAME,BIND,COMMAND,CONTAINER,ENVIRONMENT,NAME}
        for i in "${!env_names[@]}"; do
            _quote "${env_values[i]}"
            printf 'export %s=%s\n' "${env_names[i]}" "$quoted"
        done
        printf 'set --'
        for i in "$@"; do _quote "$i"; printf ' %s' "$quoted"; done
        printf '\n%sexec "$@"\n' "$tools"
    } > "$control/launch.sh" || _end_or_full "$INTERNAL" "the launcher cannot be written"
}

# The image's marker, and that each bind shows what it should, because a runtime may ignore one silently: device and inode, or where
# the image has no stat, that something is mounted there; and that nothing can be written where it is read-only.
_write_proofs() {
    local quoted i k=0 limit point sources=()
    for i in "${!bind_from[@]}"; do [ "${bind_result[i]}" != kept ] || sources+=("${bind_from[i]}"); done
    _get limit limit.path 30
    answer=()
    [ ${#sources[@]} = 0 ] || _ask "$limit" stat -L -c %d:%i -- "${sources[@]}" || :
    [ ${#answer[@]} = ${#sources[@]} ] || _finish "$NO_BIND" "a bind's source has gone, or hangs: one of ${sources[*]}"
    {
        if [ -n "${set_of[image.marker]:-}" ]; then
            _quote "${set_of[image.marker]}"
            printf 'found=; [ ! -r %s ] || read -r found < %s\n' "$MARKER_FILE" "$MARKER_FILE"
            printf '[ "$found" = %s ] || { say "image its marker is $found"; exit 1; }\n' "$quoted"
        fi
        printf '%s\n' 'true > .fermigrid/lost' 'prove() {' 'why= mode=${mounted##*"|$5 "}' 'if [ ! -e "$1" ]; then why="is missing"' \
            'elif found=$(stat -L -c %d:%i -- "$1" 2> /dev/null); then [ "$found" = "$2" ] || why="is something else"' \
            'elif [ "$mode" = "$mounted" ]; then why="is not mounted"; fi' \
            'case $3$mode in rorw*) why="can be written to"; set -- "$1" "" ro yes ;; esac' \
            'if [ -z "$why" ]; then return; fi' 'if [ "$4" = no ]; then echo "$why|$1" >> .fermigrid/lost; return; fi' \
            'say "bind $first $count $layer|$why|$1"; exit 1' '}'
        for i in "${!bind_from[@]}"; do
            [ "${bind_result[i]}" = kept ] || continue
            _quote "${bind_to[i]}"
            printf 'prove %s %s %s %s ' "$quoted" "${answer[k]}" "${bind_mode[i]}" "${bind_required[i]}"
            point=${bind_to[i]//\\/\\134}  # as mountinfo has it
            _quote "${point// /\\040}"
            printf '%s\n' "$quoted"
            k=$((k + 1))
        done
    } > "$control/proofs" || _end_or_full "$INTERNAL" "the launcher's proofs cannot be written"
}

_close_inherited() {  # in the child: signals are its own from here, open files the worker's alone
    trap - ERR PIPE
    printf 'ready\n' >&"$pipe_fd"
    _close_files
}

_launch() {  # COMMAND... ; runs in a child
    _close_inherited
    exec "$@"
}

_launch_bare() {  # in this container, or in a rehearsal: with an empty environment
    _close_inherited
    exec -c "$BASH" "$control/launch.sh"
}

_cpu() {  # 1 or -1, times the seconds of the children that have ended -> user_ms, system_ms; bash counts them, no image needs time(1)
    local line count=0
    times >&"$pipe_fd"
    while [ "$count" != 2 ] && read -r -t 1 -u "$pipe_fd" line; do [[ $line != *m*s ]] || count=$((count + 1)); done
    [[ ${line:-} =~ ^([0-9]+)m([0-9]+)\.([0-9]{3})s\ ([0-9]+)m([0-9]+)\.([0-9]{3})s$ ]] || return 0
    set -- "$1" "${BASH_REMATCH[@]:1}"
    user_ms=$((user_ms + $1 * ($2 * 60000 + 10#$3$4))) system_ms=$((system_ms + $1 * ($5 * 60000 + 10#$6$7)))
}

_start_payload() {  # COMMAND... -> status
    local group line=''
    status=0
    [ -z "$said_fd" ] || exec {said_fd}<&-
    true > "$control/started.$side"
    exec {said_fd}< "$control/started.$side"  # held, because a payload may clean up its working folder, and .fermigrid with it
    user_ms=0 system_ms=0
    _cpu -1
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
    _cpu 1
    kill -KILL -- "-$group" 2> /dev/null || :  # what the payload left behind
    [ -z "$inner_runs" ] || _kill_inner
    [ -z "$oci" ] || _end_podman
    payload_group=''
    [ -d "$control" ] || mkdir -p -- "$control"
}

_run_payload() {
    local status=0 tries=0 said='' early='' why target command=()
    _phase payload
    while :; do
        tries=$((tries + 1))
        if _starts_container; then
            _write_proofs
            [ -z "$inner_runs" ] || _tell_inner
            _container_command
            _start_payload _launch "${command[@]}" "${in_image[@]}" /bin/sh "$view/.fermigrid/launch.sh"
        else
            _start_payload _launch_bare
        fi
        [ -z "$inner_runs" ] || _take_inner_report
        read -r -u "$said_fd" said || :
        [ "$early$status" != yes137 ] || said=''  # it said so as it was killed
        case $said in
            'ok '*) break ;;
            image*) _finish "$IMAGE_DAMAGED" "the container is not the image ${set_of[image]}: ${said#image }" ;;
            bind*) said=${said#bind }; _find_kind "${said%%|*}"; said=${said#*|}; _lose_bind "${said#*|}" "${said%%|*}" ;;
        esac
        if [ ${#signals[@]} != 0 ] && [ "$status" -gt 128 ]; then
            if _ending_signal; then status=$((128 + ending)); fi
            _finish "$status" "ended by signal $ends before the payload had started"
        fi
        _container_failed
    done
    [ "$container" = none ] || _find_kind "${said#ok }"
    [ ! -r "$control/lost" ] || while IFS='|' read -r why target; do _lose_bind "$target" "$why"; done < "$control/lost"
    [ -z "$inner_runs" ] || _inner_failed "$status"
    started_payload=true payload_exit=$status
    if [ "$status" -gt 128 ] && [ "$status" -le 192 ]; then payload_signal=$((status - 128)); fi
    _judge_payload "$status"
}

_forward() {  # pending signals to the payload, once it runs; those that end a job start its grace time
    local name grace
    if [ -z "$payload_group" ]; then return 0; fi
    if [ ! -s "/dev/fd/$said_fd" ]; then
        ! _ending_signal || { early=yes; kill -KILL -- "-$payload_group" 2> /dev/null; } || :
        return 0
    fi
    while [ "$passed" -lt ${#pending[@]} ]; do  # never emptied: a signal that comes in between would be lost
        name=${pending[passed]} passed=$((passed + 1))
        _log "signal $name goes to the payload"
        _signal_payload "$name"
        if [ "$kill_at" != 0 ] || [[ $name == USR[12] || $name == XCPU ]]; then continue; fi
        _get grace grace 10
        [ -z "$inner_runs" ] || grace=$((grace + 2))  # the inner worker is done before the outer loses patience
        _now
        kill_at=$((now_ms + grace * 1000))
    done
}

_signal_payload() {  # NAME: to the process group, but for the runtime in it, which would pass it on a second time
    local name=$1 file line group=$payload_group
    [ -z "$oci" ] || ! _podman_init || group=$init
    if ! _starts_container; then kill "-$name" -- "-$payload_group" 2> /dev/null || :; return 0; fi
    for file in /proc/[0-9]*/stat; do
        { read -r line < "$file"; } 2> /dev/null || continue
        # 4523 (name) S parent group ...
        # shellcheck disable=SC2086
        set -- "${line%% *}" ${line##*) }
        if [ "$4" = "$group" ] && [ "$1" != "$group" ]; then kill "-$name" "$1" 2> /dev/null || :; fi
    done
}

_judge_payload() {  # STATUS of the payload
    local status=$1 broken words="the payload ended with exit code $1"
    _log "payload: exit $status"
    if _ending_signal; then
        [ "$status" != 0 ] || status=$((128 + ending))
        _finish_mapped "$status" "the payload was told to end by signal $ends"
    fi
    [ "$status" != 0 ] || return 0
    if _scratch_is_full; then _finish "$SCRATCH_FULL" "$words, and scratch is full ($scratch)"; fi
    [ "$payload_signal" = null ] || words="the payload was killed by signal $payload_signal"
    ! _find_broken || _finish "$CVMFS_BROKEN" "$words$broken"
    _finish_mapped "$status" "$words$broken"
}

_finish_mapped() {  # STATUS WORDS: a payload's 80-99 would be taken for the worker's own; `reserved` is the batch system's
    case $1 in [89]? | "${reserved:-}") _finish 79 "$2" ;; esac
    _finish "$1" "$2"
}
