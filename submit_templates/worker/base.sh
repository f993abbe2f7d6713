# shellcheck shell=bash
# Time, words, ways out, signals, children: what every other part stands on.

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

_finish() {  # CODE WORDS...
    finishing=yes
    exit_code=$1
    shift
    message="${overtime:+over its walltime of ${set_of[walltime]} s: }$*"
    exit "$exit_code"
}

_end_or_full() {  # CODE WORDS... ; 89 when the scratch disk is the reason
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
    ! _ending_signal || _finish $((128 + ending)) "ended by signal $ends in phase $phase ($2, line $3, status $1)"
    if [ "$phase" != finish ] && _scratch_is_full; then
        _finish "$SCRATCH_FULL" "scratch is full ($scratch): $2, line $3"
    fi
    _finish "$INTERNAL" "internal error in $2, line $3, status $1"
}

# Runs in the middle of whatever is going on, often a `read`, so it reads nothing: a second `read` makes the first one wait for ever.
_on_signal() {  # NAME NUMBER
    signals+=("$1")
    [[ " $ends " == *" $1 "* ]] || ends+=${ends:+ }$1
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

_calm() {  # ends a stretch in which signals wait; such stretches may lie in each other
    critical=${critical%?}
    [ -n "$critical$finishing" ] || [ -z "$deferred" ] || _finish $((128 + deferred)) "ended by signal $ends in phase $phase"
}

_ending_signal() {  # -> true, and `ending` its number, when a signal has come that ends a job
    local name
    ending=''
    for name in ${signals[@]+"${signals[@]}"}; do
        case $name in HUP) ending=1 ;; INT) ending=2 ;; QUIT) ending=3 ;; TERM) ending=15 ;; esac
    done
    [ -n "$ending" ]
}

# Polls, ever more slowly, up to twice a second: in bash's own `wait`, of two signals at once, or a signal and the end of the
# child, one can be lost. Kills the group when `kill_at` comes, and gives up 5 s later: a dead mount makes processes unkillable.
_await() {  # GROUP -> its status
    local nap=1 pause status=0
    while _lives "$1"; do
        [ ${#pending[@]} = "$passed" ] || _forward
        [ -z "$live" ] || _renew_secrets
        if [ "$end_by" != 0 ]; then
            _now
            if [ "$now_ms" -ge "$end_by" ]; then end_by=0 overtime=yes; _on_signal TERM 15; fi
        fi
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

# Not by `kill -0` alone: a `read` with a time limit can leave bash deaf to the ends of its children (5.2, SIGCHLD stays blocked), and
# they stay zombies until `wait` asks. The leader of a runtime's threads may be a zombie while they live; and for a moment when one of
# them becomes another program, as Apptainer's do, and then takes the leader's place: so the threads are counted first.
_lives() {  # PID
    local line tasks=("/proc/$1/task"/*)
    [ ${#tasks[@]} = 1 ] || return 0
    if { read -r line < "/proc/$1/stat"; } 2> /dev/null; then
        [[ ${line##*) } != Z* ]]
    else
        kill -0 "$1" 2> /dev/null
    fi
}

_run() {  # SECONDS COMMAND... ; signals are answered at once; 137 when it took longer (0: no limit)
    local status=0  # no name but this, because COMMAND sees it in the place of its caller's
    critical+=.  # a child whose number is not known yet would outlive the worker
    set -m
    _alone "${@:2}" < /dev/null 3>&- 4>&- &
    child=$!
    set +m
    _calm
    if [ "$1" != 0 ]; then _now; kill_at=$((now_ms + $1 * 1000)); fi
    _await "$child" || status=$?
    child=''
    return "$status"
}

_alone() {  # COMMAND...
    _close_files
    if declare -F "$1" > /dev/null; then "$@"; else exec "$@"; fi
}

_sleep() { _run 0 sleep "$1" || :; }

_close_files() {  # in a child: one that cannot be killed must keep nothing of the worker's
    local fd
    for fd in $scratch_fd $version_fd $cache_fd $guard_fd $oci_fd $secret_fd $start_fd $said_fd $pipe_fd $ask_fd; do exec {fd}>&-; done
}

# Asks something that may never be answered, such as the state of a mount, in a group of its own that is left behind when even
# KILL does not end it. -> answer: the lines of its stdout; false when its end did not come for SECONDS.
_ask() {  # SECONDS COMMAND... (0: no limit)
    local line='' half='' waited=0 gone=''
    answer=()
    [ -n "$ask_fd" ] || exec {ask_fd}<> <(:)
    critical+=.
    set -m
    _answer "${@:2}" >&"$ask_fd" 2> /dev/null < /dev/null 3>&- 4>&- &
    asked=$!
    set +m
    _calm
    while [ "$line" != ended ]; do
        if IFS= read -r -t 1 -u "$ask_fd" line; then  # by the second: old bash runs no trap in a longer one
            line=$half$line half=''
            case $line in
                ended) ;;
                '@cvmfs '*) json_cvmfs+="${json_cvmfs:+, }${line#* }" ;;
                *) answer+=("$line") ;;
            esac
        elif [ -n "$gone" ] || { waited=$((waited + 1)) && [ "$waited" = "$1" ]; }; then
            { disown "$asked"; kill -KILL -- "-$asked"; } 2> /dev/null || :
            exec {ask_fd}>&-  # it may still write
            ask_fd=''
            break
        else
            half+=$line line=''  # on a busy machine the second may end in the middle of a line
            _lives "$asked" || gone=yes
        fi
    done
    asked=''
    [ "$line" = ended ]
}

_answer() {
    trap - ERR
    set +Ee
    _close_files
    "$@"
    printf 'ended\n'
}

_sha256() {  # FILE... -> answer: their digests in order, empty for one that cannot be read
    local i left lines=() tool=sha256sum
    answer=()
    [ $# -gt 0 ] || return 0
    # one file is likely a large one, and openssl knows the processor's own instructions: a quarter of the time
    [ $# != 1 ] || ! command -v openssl > /dev/null || tool='openssl dgst -sha256 -r'
    _left
    # shellcheck disable=SC2086
    if ! _ask "$left" $tool -- "$@" || [ ${#answer[@]} != $# ]; then
        for i in "$@"; do _ask "$left" sha256sum -- "$i" || :; lines+=("${answer[0]:-}"); done
        answer=("${lines[@]}")
    fi
    for i in "${!answer[@]}"; do
        answer[i]=${answer[i]#\\}  # a backslash before the digest: the name was escaped
        answer[i]=${answer[i]%% *}
    done
}

_size() {  # FILE -> size; empty when there is none
    size=$(exec stat -L -c %s -- "$1" 2> /dev/null) || size=''
}

_quote() {  # TEXT -> quoted, one word of any Bourne shell
    local q="'\\''"
    quoted="'${1//\'/$q}'"
}
