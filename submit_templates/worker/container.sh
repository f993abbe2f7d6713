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
        for path in ${image_paths[@]+"${image_paths[@]}"}; do [[ $inside != "$path" && ! $inside -ef $path ]] || where=image; done  # pilots follow links
    fi
    if [ "$where" = host ] && { [ -n "$inside$found" ] || [ -d /.singularity.d ]; }; then
        where=other
        _log "this is another image (${found:-${inside:-unnamed}})"
    fi
}

_find_kind() {  # "FIRST COUNT FILE_SYSTEM": of the ids' map, of the container's root -> userns: are few users mapped; overlay
    if [ "${1% *}" = "0 4294967295" ]; then userns=false; else userns=true; fi
    case ${1##* } in overlay | *fuse-overlayfs | tmpfs) overlay=yes ;; -) ;; *) overlay=no ;; esac
}

_use_this_container() {  # the site has started the right image
    container=site rung=site image_source=${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-${image_paths[0]:-}}}
    [ -z "${SINGULARITY_CONTAINER:-}" ] || runtime_name=singularity
    [ -z "${APPTAINER_CONTAINER:-}" ] || runtime_name=apptainer
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
        if [[ $name == /* ]]; then
            _wake_all "$name"
            [ "${woken[0]}" = there ] || { _log "runtime $name: ${woken[0]}"; continue; }
        fi
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
    [ -d "$temporary" ] || mkdir -p -- "$temporary" "$scratch/.session"
    runtime_env=("PATH=$PATH" "HOME=${HOME:-$scratch}" "USER=${USER:-}" "LANG=C" "TMPDIR=$temporary")
    for name in APPTAINER SINGULARITY; do runtime_env+=("${name}_TMPDIR=$temporary" "${name}_CACHEDIR=$temporary"); done
    [ -z "${XDG_RUNTIME_DIR:-}" ] || runtime_env+=("XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR")
}

_starts_container() { [ "$side" = run ] && [[ $container == worker || $container == nested ]]; }

_start_in() {  # FOLDER -> command: a container whose first program starts there, up to its binds; in_image: what comes after them
    _runtime_environment
    bind_option=--bind in_image=("$image")
    command=(env -i "${runtime_env[@]}" "$runtime" -q exec --cleanenv --contain --no-home --pwd "$1" --workdir "$scratch/.session")
    [ "$unsquash" != yes ] || command+=(--unsquash)
    ! _is_podman || _podman_in "$1"
    command+=(${runtime_options[@]+"${runtime_options[@]}"})
}

_bind() { command+=("$bind_option" "$1:$2:$3"); }  # FROM TO MODE

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

_try_image() {  # starts the image once without binds -> words, what the runtime said when it did not; missing: targets not in it
    _start_in /
    _try /bin/sh -c 'for t; do [ -e "$t" ] || echo "@$t"; done' sh ${bind_to[@]+"${bind_to[@]}"} || return 1
    printf -v missing '%s\n' '' "${answer[@]}"
}

_try() {  # COMMAND... in the container of `command` -> words, what was said; tried, the status
    local line
    command+=("${in_image[@]}" "$@")
    words="no answer within 120 s" tried=''
    _ask 120 _trial || return 1
    tried=${answer[${#answer[@]} - 1]} words=''
    for line in "${answer[@]:0:${#answer[@]}-1}"; do [ -n "$line" ] || break; words+=${words:+; }$line; done  # up to a table of options
    words=${words:0:500}
    [ "$tried" = 0 ]
}

_trial() {  # runs in a child -> what the runtime said, and last its status
    local status=0
    "${command[@]}" 2>&1 < /dev/null || status=$?
    printf '\n%s\n' "$status"
}

# What to do with a container that did not start, or in which the launcher could not run: never charged to the payload. Returns when
# there is something else to try: without an optional bind, unpacked, another image, another runtime. Knows status and tries.
_container_failed() {
    local words='' tried='' missing='' broken code=$NO_IMAGE
    _starts_container || _end_or_full "$INTERNAL" "the payload could not be launched (status $status)"
    _phase image
    ! _find_broken || _finish "$CVMFS_BROKEN" "the container did not start (status $status)$broken"
    if _try_image; then _find_bad_bind; else _find_other_way; fi
    _phase payload
}

_find_bad_bind() {  # the image starts; what is it with this job's binds?
    local to dropped=''
    _container_command
    if _try /bin/sh -c '[ -r .fermigrid/launch.sh ] || exit 3; true > .fermigrid/tried'; then
        [ "$tries" -lt 3 ] || _end_or_full "$NO_IMAGE" "$runtime starts $image only now and then (status $status)"
        return 0
    fi
    words="the image starts, but not with this job's binds: $words"
    [ "$tried" != 3 ] || words="the runtime ignores binds here ('user bind control = no'): ask the site to allow them, or use launch: site"
    if [[ $words == *"exist in container"* ]]; then
        overlay=no
        for to in "${bind_to[@]}"; do [[ $missing != *$'\n@'"$to"$'\n'* ]] || _lose_bind "$to" "is missing"; done
    fi
    [ -n "$dropped" ] || _end_or_full "$NO_BIND" "$words"
}

_lose_bind() {  # TARGET WHY: the container does not have it as it should -> dropped; 84
    local i words
    for i in "${!bind_to[@]}"; do
        if [ "${bind_to[i]}" != "$1" ] || [ "${bind_result[i]}" != kept ]; then continue; fi
        words="bind ${bind_from[i]}:$1: it $2 in the container"
        [ "$2$overlay" != "is missingno" ] || words+=". Image ${set_of[image]} has no $1, and the runtime neither overlay nor underlay here: \
make the folder in the image, or ask the site for overlay"
        bind_result[i]=fatal
        [ "${bind_required[i]}" = no ] || _finish "$NO_BIND" "$words"
        bind_result[i]=dropped dropped=yes
        _log "$words; it is optional: dropped"
    done
}

_find_other_way() {  # the image does not start
    case $words in
        *'image format not recognized'* | *corrupt* | *quashfs*) code=$IMAGE_DAMAGED ;;
        *namespace* | *setuid* | *'not permitted'* | *max_user*) code=$NO_RUNTIME ;;
    esac
    if [ "$unsquash" != yes ]; then refusal="$runtime could not start a container from $image (status $status): $words" refusal_code=$code; fi
    _log "$refusal"
    ! _heal_image || return 0
    if [ -z "$unsquash" ] && [ -f "$image" ]; then unsquash=yes; return 0; fi  # without FUSE, or where a SIF is not allowed
    unsquash=''
    if [ "$refusal_code" = "$NO_RUNTIME" ]; then
        _find_runtime || _end_or_full "$refusal_code" "$refusal"
    else
        _climb_ladder  # on, from the image that was refused
    fi
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
