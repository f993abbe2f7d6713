# shellcheck shell=bash
# Secrets of the batch's step: copies for this job alone.

_stage_secrets() {  # copies for this job alone, in memory where there is such a place; a guard removes them if the worker is killed
    local i base uuid bases=(/dev/shm "${XDG_RUNTIME_DIR:-}" "$scratch")
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
    _run_quietly 30 openssl x509 -noout -checkend 0 -in "$file" || _finish "$EXPIRED" "the X.509 proxy of secret ${secret[${secret_point_of[$1]}]} has expired, or is none"
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
    if ! _run_quietly "$limit" cp -rL --no-preserve=mode -- "$2" "$to/"; then
        _finish "$NO_SECRET" "secret $1: $2 cannot be copied"
    fi
}

_remove_secrets() {
    rm -rf -- "$secret_dir" 2> /dev/null || :
    [ -z "$guard_fd" ] || exec {guard_fd}>&-
    guard_fd=''
}

_run_quietly() { _ask "$1" _copied "${@:2}" && [ "${answer[0]:-}" = yes ]; }  # SECONDS COMMAND...

_copied() {
    umask 077
    if "$@" > /dev/null; then printf 'yes\n'; fi
}
