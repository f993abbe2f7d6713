# shellcheck shell=bash
# Where the worker is, and how it starts a container: the runtime, its command line, what it said when it failed.

runtime_env=()

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
