# shellcheck shell=bash
# The site's preamble, for batches of a site that has one. Its lines run in a shell of their own, so that nothing of them but
# exported variables reaches the worker, and of those none the payload.

_run_preamble() {  # 81
    local status=0 text="exec 5>&1 >&2" line words='' limit fd
    _get limit limit.path 60
    for line in "${preamble[@]}"; do text+=$'\n'$line; done
    text+=$'\nstatus=$?; [ "$status" = 0 ] || exit "$status"; exec cat /proc/self/environ >&5'
    # without a name, because it has the whole environment of whoever started the worker
    exec {fd}<> "$control/environ"
    rm "$control/environ"
    _run "$limit" _preamble_shell "$text" 1>&"$fd" 2> "$control/words" || status=$?
    while IFS= read -r line; do words+="${words:+; }$line"; done < "$control/words"
    if [ "$status" != 0 ] || [ ! -s /dev/fd/$fd ]; then
        _finish "$NO_RUNTIME" "the site's preamble failed on $HOSTNAME (status $status): ${words:-it said nothing}"
    fi
    while IFS= read -r -d '' line; do
        ! _is_free "${line%%=*}" "${line#*=}" || export "${line%%=*}=${line#*=}"
    done < /dev/fd/$fd
    exec {fd}<&-
    export PATH=$PATH:/usr/local/bin:/usr/bin:/bin
}

_preamble_shell() { _close_files; exec "$BASH" --noprofile --norc -c "$1"; }  # TEXT; runs in a child

_is_free() {  # NAME VALUE of a variable: new, neither one of the worker nor one that says who and where the job is
    [[ $1 =~ $VARIABLE && ${!1-} != "$2" ]] || return 1
    case $1 in LD_* | LC_ALL | USER | LOGNAME | HOME | TMPDIR | PWD | OLDPWD | SHLVL | _ | BASH* | FERMIGRID*) return 1 ;; esac
    [[ $(declare -p "$1" 2> /dev/null || echo declare -x) == declare\ -x* ]]
}
