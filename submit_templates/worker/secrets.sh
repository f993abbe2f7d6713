# shellcheck shell=bash
# Secrets of the batch's step: copies for this job alone, and how its payload finds them. What job.env says of secret INDEX
# is in set_of, under its key and the index: set_of[secret.from.0].

secret_point=() secret_point_of=() secret_home=() secret_home_of=() secret_set=() taken=()
origin=''  # the folder to which the job's files came, where that is no folder that all nodes share
[ -n "${FERMIGRID_PLAN:-}" ] || origin=$PWD
readonly ONE_NAME='^[A-Za-z0-9._+@=-]*[A-Za-z0-9_+@=-][A-Za-z0-9._+@=-]*$'  # of a file, not . nor ..
readonly SECRET_BYTES=16777216  # more than this of sealed content is a mistake, or a bomb

_take_secret() {  # KEY VALUE of job.env
    [ "$1" != secret ] || secret+=("$2")
    _last ${#secret[@]} "$1"
    case $1 in
        secret) _need "$TAME" "$2" "$1" ;;
        secret.kind) _need '^(path|transfer|sealed|token|proxy)$' "$2" "$1" ;;
        secret.from | secret.key | secret.certificate) ;;
        secret.signer) _need "$ONE_NAME" "$2" "$1" ;;
        secret.sha256 | secret.signer.sha256) _need "$HEX64" "$2" "$1" ;;
        secret.point) _assignment "$2"; _inside "${2#*=}" "$1"; secret_point+=("$2") secret_point_of+=("$last") ;;
        secret.home) _local_name "${2%%=*}" "$1"; _inside "${2#*=}" "$1"; secret_home+=("$2") secret_home_of+=("$last") ;;
        secret.set) _assignment "$2"; secret_set+=("$2") ;;
        *) _bad "unknown key '$1' in job.env" ;;
    esac
    set_of[$1.$last]=$2
}

_inside() { [ "$1" = . ] || _local_name "$1" "$2"; }  # PATH WHAT: the secret's folder, or something in it

_guard_secrets() {  # a private folder, in memory where there is such a place, and a guard that removes it if the worker is killed
    local base uuid bases=(/dev/shm "${XDG_RUNTIME_DIR:-}" "$scratch")
    _find_taken
    read -r uuid < /proc/sys/kernel/random/uuid
    if _is_private "${FERMIGRID_SECRETS:-}"; then bases=("$FERMIGRID_SECRETS" "$scratch"); fi  # who set it removes it
    for base in "${bases[@]}"; do
        if [ -z "$base" ] || [ ! -w "$base" ] || ! mkdir -m 700 -- "$base/fermigrid.$uuid" 2> /dev/null; then continue; fi
        secret_dir=$base/fermigrid.$uuid
        break
    done
    [ -n "$secret_dir" ] || _end_or_full "$NO_SECRET" "no private folder can be made for secrets"
    secret_view=$secret_dir
    # its stdin ends when the worker does, whatever ended it
    exec {guard_fd}> >(trap - ERR; trap '' INT TERM QUIT HUP; exec > /dev/null 2>&1 3>&- 4>&-; read -r _ || :; rm -rf -- "$secret_dir" ${taken[@]+"${taken[@]}"})
    _sweep_secrets "${secret_dir%/*}"
}

_stage_secrets() {  # each in its way, then what the variables point to is looked at
    local i
    _phase secrets
    for i in "${!secret[@]}"; do
        mkdir -m 700 -- "$secret_dir/${secret[i]}"
        case ${set_of[secret.kind.$i]:-path} in
            path) _copy_secret "$i" ;;
            transfer) _take_transferred "$i" ;;
            sealed) _open_sealed "$i" ;;
            *) _take_live "$i" ;;
        esac
    done
    for i in "${!secret_point[@]}"; do
        case ${secret_point[i]%%=*} in X509_USER_PROXY | BEARER_TOKEN_FILE) _note_end "$i" ;; esac
    done
}

_is_private() {  # FOLDER: a folder of this user alone
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && [ "$(stat -c %a -- "$1" 2> /dev/null || :)" = 700 ]
}

_find_came() { came=$scratch/$1; [[ -z $origin || -e $came && ! -L $came ]] || came=$origin/$1; }  # NAME -> came: the file that came with the job

_find_taken() {  # -> taken: what came with the job and is not to stay where it came
    local i name
    taken=()
    for i in "${!secret[@]}"; do
        name=${set_of[secret.from.$i]:-}
        case ${set_of[secret.kind.$i]:-} in transfer | sealed) [[ ! $name =~ $ONE_NAME ]] || taken+=("${origin:-$scratch}/$name" "$scratch/$name") ;; esac
    done
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

_no_secret() { _finish "$NO_SECRET" "secret ${secret[$1]}: ${*:2}"; }  # INDEX WORDS...

_copy_secret() {  # INDEX: a folder or file of the node
    local limit from=${set_of[secret.from.$1]:-} source
    _get limit limit.path 30
    if ! _ask "$limit" _wake "$from" || [ "${answer[0]:-}" != there ]; then _no_secret "$1" "$from is not there on $HOSTNAME"; fi
    source=$from
    [ ! -d "$from" ] || source=$from/.
    _quietly "$limit" cp -rL --no-preserve=mode -- "$source" "$secret_dir/${secret[$1]}/" || _no_secret "$1" "$from cannot be copied: $said"
}

_take_transferred() {  # INDEX: a folder or file that came with the job goes out of the scratch folder
    local name=${set_of[secret.from.$1]:-} came source
    [[ $name =~ $ONE_NAME ]] || _bad "secret.from: '$name'"
    _find_came "$name"
    _ask 30 find "$came" ! -type f ! -type d -print -quit || :
    [ ${#answer[@]} = 0 ] || _no_secret "$1" "$name${answer[0]#"$came"} is no plain file or folder"
    [ -e "$came" ] || _no_secret "$1" "$name did not come with the job"
    source=$came
    [ ! -d "$came" ] || source=$came/.
    _quietly 60 cp -r --no-preserve=mode -- "$source" "$secret_dir/${secret[$1]}/" || _no_secret "$1" "$name cannot be taken in: $said"
    _quietly 60 rm -rf -- "$came" || _no_secret "$1" "$name cannot be taken out of the scratch folder: $said"
}

_settle_secrets() {  # now that it is known where the payload sees them
    local i
    ! _starts_container || secret_view=$view/.fermigrid/secrets
    for i in "${!secret_point[@]}"; do
        case ${secret_point[i]} in TNS_ADMIN=*) _move_wallet "$i" ;; esac
    done
}

_point_to_secrets() {  # the payload's variables, and links in its home folder
    local i file
    set_of[cores.limit]=0  # a core file has what the payload has read
    _assign_env ${secret_set[@]+"${secret_set[@]}"}
    for i in "${!secret_point[@]}"; do
        _find_point "$secret_view" "${secret_point_of[i]}" "${secret_point[i]}"
        _set_env "${secret_point[i]%%=*}" "$point"
    done
    for i in "${!secret_home[@]}"; do
        _find_point "$secret_view" "${secret_home_of[i]}" "${secret_home[i]}"
        file=$control/home/${secret_home[i]%%=*}
        { mkdir -p -- "${file%/*}" && ln -sfn -- "$point" "$file"; } || _end_or_full "$INTERNAL" "home/${secret_home[i]%%=*} cannot be made"
    done
}

_find_point() {  # FOLDER INDEX NAME=PATH -> point: the path in that secret, in the folder of all
    point=$1/${secret[$2]}
    [ "${3#*=}" = . ] || point+=/${3#*=}
}

_export_secrets() {  # for the worker's own clients; in a child
    local i
    for i in ${secret_set[@]+"${secret_set[@]}"}; do export "${i%%=*}=${i#*=}"; done
    for i in "${!secret_point[@]}"; do
        _find_point "$secret_dir" "${secret_point_of[i]}" "${secret_point[i]}"
        export "${secret_point[i]%%=*}=$point"
    done
}

_remove_secrets() {
    [ -z "$live" ] || _tell_ends
    _find_taken
    rm -rf -- "$secret_dir" ${taken[@]+"${taken[@]}"} 2> /dev/null || :
    [ -z "$guard_fd" ] || exec {guard_fd}>&-
    guard_fd=''
}

_quietly() {  # SECONDS COMMAND... -> said: why it failed. Its stdout goes nowhere
    said="no end within $1 s"
    _ask "$1" _hush "${@:2}" || return 1
    said=${answer[0]:-no reason given}
    [ "$said" = yes ]
}

_hush() {  # COMMAND...; in a child -> yes, or the last part of its first word on stderr
    local words
    umask 077
    if words=$("$@" 2>&1 > /dev/null); then words=yes; fi
    words=${words%%$'\n'*}
    printf '%s\n' "${words##*: }"
}
