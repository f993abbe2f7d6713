# shellcheck shell=bash
# Where the worker is, and how it starts a container: the runtime, its command line, what it said when it failed.

runtime_env=() runtime_next=0 unsquash=''
refusal='' refusal_code=''

_find_where() {  # -> where: image, other (another image) or host
    local found='' inside=${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-}} path
    [ ! -r "$MARKER_FILE" ] || IFS= read -r found < "$MARKER_FILE" || :
    if [ -n "${set_of[image.marker]:-}" ]; then
        [ "$found" != "${set_of[image.marker]}" ] || where=image
    elif [ -n "$inside" ]; then
        for path in ${image_paths[@]+"${image_paths[@]}"}; do [ "$inside" != "$path" ] || where=image; done
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
    container=site rung=site image_source=${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-${image_paths[0]:-}}}
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

_find_runtime() {  # -> runtime, the next one of the list that is here, and its version on version_fd
    local name
    [ ${#runtimes[@]} -gt 0 ] || runtimes=(apptainer singularity)
    [ -z "$version_fd" ] || exec {version_fd}<&-
    version_fd='' unsquash=''
    while [ "$runtime_next" -lt ${#runtimes[@]} ]; do
        name=${runtimes[runtime_next]} runtime_next=$((runtime_next + 1))
        if command -v -- "$name" > /dev/null; then
            runtime=$name runtime_name=${name##*/}
            _runtime_environment
            exec {version_fd}< <(exec env -i "${runtime_env[@]}" "$name" --version 2> /dev/null < /dev/null)
            return 0
        fi
    done
    return 1
}

_is_podman() { [[ $runtime_name == podman* ]]; }

_runtime_environment() {  # nothing of the host but what a runtime needs: no binds, no loader paths by environment
    local temporary=$scratch/.image/tmp name
    mkdir -p -- "$temporary" "$scratch/.session"
    runtime_env=("PATH=$PATH" "HOME=${HOME:-$scratch}" "USER=${USER:-}" "LANG=C" "TMPDIR=$temporary")
    for name in APPTAINER SINGULARITY; do runtime_env+=("${name}_TMPDIR=$temporary" "${name}_CACHEDIR=$temporary"); done
    [ -z "${XDG_RUNTIME_DIR:-}" ] || runtime_env+=("XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR")
}

_find_overlay() {  # FILE_SYSTEM of the container's root -> overlay
    case $1 in overlay | *fuse-overlayfs | tmpfs) overlay=yes ;; -) overlay=unknown ;; *) overlay=no ;; esac
}

_starts_container() { [ "$side" = run ] && [[ $container == worker || $container == nested ]]; }

_start_in() {  # FOLDER -> command: a container whose first program starts there; without binds
    _runtime_environment
    if _is_podman; then _podman_in "$1"; return 0; fi
    command=(env -i "${runtime_env[@]}" "$runtime" -q exec --cleanenv --contain --no-home --pwd "$1" --workdir "$scratch/.session")
    [ "$unsquash" != yes ] || command+=(--unsquash)
    command+=(${runtime_options[@]+"${runtime_options[@]}"})
}

_bind() { if _is_podman; then command+=(--volume "$1:$2:$3"); else command+=(--bind "$1:$2:$3"); fi; }  # FROM TO MODE

_to_run() { if _is_podman; then _podman_to_run "$@"; else command+=("$image" "$@"); fi; }  # COMMAND...

_container_command() {  # -> command, with all binds
    local i to
    _start_in "$view"
    _bind "$work" "$view" rw
    if [ -n "$inner_runs" ]; then
        _bind "$scratch" "$view/.fermigrid/scratch" rw
        _bind_output_root
    fi
    [ -z "$secret_dir" ] || _bind "$secret_dir" "$secret_view" ro
    for i in "${!bind_from[@]}"; do
        [ "${bind_result[i]}" = kept ] || continue
        to=${bind_to[i]}
        [[ $to != "$view"/* ]] || mkdir -p -- "$work/${to#"$view"/}"
        _bind "${bind_from[i]}" "$to" "${bind_mode[i]}"
    done
}

_bind_output_root() {  # order wrapper-inside publishes from inside the container
    local root=${set_of[output.root]:-} i
    [ "${set_of[output.kind]}" = posix ] || return 0
    for i in "${!bind_from[@]}"; do
        [ "${bind_mode[i]}" != rw ] || [ "${bind_from[i]}" != "${bind_to[i]}" ] || [[ $root/ != "${bind_to[i]}"/* ]] || return 0
    done
    _bind "$root" "$root" rw
}

_try_image() {  # starts the image once with nothing in it -> words, what the runtime said when it did not
    _start_in /
    _try /bin/sh -c :
}

_try() {  # COMMAND... in the container of `command` -> words, what was said; tried, the status
    local line
    _to_run "$@"
    words="no answer within 120 s" tried=none
    _ask 120 _trial || return 1
    tried=${answer[${#answer[@]} - 1]} words=''
    for line in "${answer[@]}"; do [ -n "$line" ] || break; words+=${words:+; }$line; done  # up to a table of options
    words="${words:0:500}"
    [ "$tried" = 0 ]
}

_trial() {  # runs in a child -> what the runtime said, and last its status
    local status=0
    "${command[@]}" 2>&1 < /dev/null || status=$?
    printf '%s\n' "$status"
}

# What to do with a container that did not start, or in which the launcher could not run. A failure of the runtime is never
# charged to the payload. Returns when there is something else to try: without an optional bind, unpacked, another image, another runtime.
_container_failed() {  # STATUS TRIES
    local words='' tried='' broken code=$NO_IMAGE
    _starts_container || _finish_or_full "$INTERNAL" "the payload could not be launched (status $1)"
    _phase image
    ! _find_broken || _finish "$CVMFS_BROKEN" "the container did not start (status $1)$broken"
    if _try_image; then _find_bad_bind "$1" "$2"; else _find_other_way "$1" "$2"; fi
    _phase payload
}

_find_bad_bind() {  # STATUS TRIES: the image starts; what is it with this job's binds?
    local i target dropped=''
    _container_command
    if _try /bin/sh -c '[ -r .fermigrid/launch.sh ] || exit 3; true > .fermigrid/tried || exit 4'; then
        [ "$2" -lt 3 ] || _finish_or_full "$NO_IMAGE" "$runtime starts the container from $image at one time and not at another (status $1)"
        return 0
    fi
    case $tried in
        3) _finish "$NO_BIND" "$runtime starts the container and ignores its binds: this site has 'user bind control = no'. Ask it to allow" \
            "binds, or use it with launch: site: $words" ;;
        4) _finish_or_full "$NO_IMAGE" "the working folder cannot be written to in the container: $words" ;;
    esac
    [[ $words == *"exist in container"* ]] || _finish_or_full "$NO_BIND" "the image starts, but not with this job's binds: $words"
    overlay=no
    _start_in /
    _try /bin/sh -c 'for t; do [ -e "$t" ] || echo "@$t"; done' sh "${bind_to[@]}" || return 0
    for i in "${!bind_to[@]}"; do
        for target in ${answer[@]+"${answer[@]}"}; do
            if [ "$target" = "@${bind_to[i]}" ] && [ "${bind_result[i]}" = kept ]; then _lose_bind "$i" "is missing"; dropped=yes; fi
        done
    done
    [ -n "$dropped" ] || _finish "$NO_BIND" "the image starts, but not with this job's binds: $words"
}

_lose_target() {  # TARGET WHY, as the launcher says
    local i
    for i in "${!bind_to[@]}"; do
        if [ "${bind_to[i]}" = "$1" ] && [ "${bind_result[i]}" = kept ]; then _lose_bind "$i" "$2"; fi
    done
}

_lose_bind() {  # INDEX WHY: the container does not have it
    local words="bind ${bind_from[$1]}:${bind_to[$1]}: $runtime_name did not bind it, it $2 in the container"
    [ "$2$overlay" != "is missingno" ] || words="bind ${bind_from[$1]}:${bind_to[$1]}: the image ${set_of[image]} has no ${bind_to[$1]}, and \
$runtime_name has neither overlay nor underlay here. Make the folder when the image is built, or ask the site for overlay"
    bind_result[$1]=fatal
    [ "${bind_required[$1]}" = no ] || _finish "$NO_BIND" "$words; it is required"
    bind_result[$1]=dropped
    _log "$words; it is optional: dropped"
}

_find_other_way() {  # STATUS TRIES: the image does not start
    case $words in
        *'image format not recognized'* | *corrupt* | *quashfs*) code=$IMAGE_DAMAGED ;;
        *namespace* | *setuid* | *'not permitted'* | *max_user*) code=$NO_RUNTIME ;;
    esac
    if [ "$unsquash" != yes ]; then refusal="$runtime could not start a container from $image (status $1): $words" refusal_code=$code; fi
    _log "$refusal"
    ! _heal_image || return 0
    if [ -z "$unsquash" ] && [ -f "$image" ]; then  # without FUSE, or where a SIF is not allowed
        unsquash=yes
        return 0
    fi
    unsquash=''
    if [ "$refusal_code" = "$NO_RUNTIME" ] && _find_runtime; then return 0; fi
    if [ "$refusal_code" = "$NO_RUNTIME" ] || [ "$2" -gt 9 ]; then _finish_or_full "$refusal_code" "$refusal"; fi
    _climb_ladder  # on, from the image that was refused
}

_heal_image() {  # a container that did not start: was the cached image damaged? Then another one is fetched
    [ "$rung" = cache ] && [ -f "$image" ] || return 1
    _sha256 "$image"
    [ "${answer[0]}" != "${set_of[image.sha256]:-}" ] || return 1
    _log "the cached image $image is damaged: removed"
    rm -f -- "$image" "$image.$EUID.stamp"
    climbed=$((${#image_paths[@]} + 1))
    _climb_ladder
}
