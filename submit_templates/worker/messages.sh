# shellcheck shell=bash
# Start and end messages of a job of the Fermi pipeline, for batches that have them. A message that does not get away never
# harms the job: the report carries it, and the submit side sends it.

messages=yes
stamp='' mail_date='' started_at='' text='' id='' route='' result='' start_text='' start_id='' json_messages='' pipeline_lines=()

_read_messages() {  # before anything can fail: the end message goes out for a damaged job.env, too
    local line value
    messages=''
    [ -r job.env ] || return 0
    while IFS= read -r line || [ -n "$line" ]; do
        [[ $line == message.*=* ]] || continue
        printf -v value '%b' "${line#*=}"
        [[ $line != message.via=* ]] || message_via+=("$value")
        set_of[${line%%=*}]=$value
    done < job.env
    [[ ! ${set_of[message.instance]:-} =~ $NUMBER ]] || messages=yes
    _stamp
    started_at=$stamp
}

_stamp() {  # -> stamp, as date(1) prints the time; mail_date, as in the header of a mail
    { read -r stamp && read -r mail_date; } < <(exec date '+%a %b %e %H:%M:%S %Z %Y%n%a, %d %b %Y %H:%M:%S %z') || :
}

_compose() {  # KIND LINES -> text, id
    local instance=${set_of[message.instance]}
    id=$instance.$attempt.$1
    printf -v text '%s\n' "From: ${set_of[message.from]:-}" "To: ${set_of[message.to]:-}" "Subject: $instance" "Date: $mail_date" \
        "Message-ID: <$id@fermigrid>" 'MIME-Version: 1.0' 'Content-Type: text/plain; charset=utf-8' \
        'Content-Transfer-Encoding: 8bit' '' "ProcessInstance: $instance" "Host: ${HOSTNAME:-}" "StartTime: $started_at" \
        "WorkDir: ${set_of[message.workdir]:-$scratch}" "LogFile: ${set_of[message.log]:-}" "${@:2}"
}

_send_start() {  # beside the work: a payload does not wait for a mail server
    local again=()
    [ "$start" = 1 ] || again=("# Attempt: $start, the batch system has started this job again")
    _compose start ${again[@]+"${again[@]}"} 'Status: Started'
    start_text=$text start_id=$id
    exec {start_fd}< <(
        trap '' HUP INT QUIT TERM USR1 USR2 XCPU
        trap - ERR
        set +Eeu
        exec 2> /dev/null 3>&- 4>&- {pipe_fd}<> <(:)
        _deliver
        printf '%s %s\n' "$result" "$route"
    )
}

# The last pipelineSet of a name counts; of pipelineCreateStream all do. Bounded, because the report may have to carry it.
_read_pipeline() {  # -> pipeline_lines
    local line key i bytes=0
    [ -n "$control" ] && [ -f "$control/summary" ] && [ ! -L "$control/summary" ] || return 0
    while IFS= read -r -n 5000 line || [ -n "$line" ]; do
        key=${line%%:*}
        [[ $line == *:* && $key =~ ^Pipeline(CreateStream)?\.[A-Za-z0-9._/-]+$ ]] || continue
        line=${line//$'\r'/?}
        [ ${#line} -le 998 ] || line="# left out, too long: ${key:0:900}"
        bytes=$((bytes + ${#line}))
        [ "$bytes" -le 30000 ] || { pipeline_lines+=('# left out: all after 30000 bytes'); return 0; }
        if [[ $key == Pipeline.* ]]; then
            for i in "${!pipeline_lines[@]}"; do [[ ${pipeline_lines[i]} != "$key:"* ]] || { pipeline_lines[i]=$line; continue 2; }; done
        fi
        pipeline_lines+=("$line")
    done < "$control/summary"
}

_send_end() {  # the last act of the outermost worker but the report
    local code=$exit_code lines=() words="${signals[*]-}" limit=9999
    if [ -n "$start_fd" ]; then
        ! _ending_signal || limit=3
        result='' text=$start_text id=$start_id
        read -r -t "$limit" -u "$start_fd" result route || result=doubt
        _describe_message start
    fi
    [ "$payload_exit" = null ] || [ "$payload_exit" = 0 ] || code=$payload_exit
    _seconds "${spent[payload]}"; lines+=("Elapsed: $seconds")
    _seconds "$user_ms"; lines+=("User: $seconds")
    _seconds "$system_ms"; lines+=("System: $seconds")
    _stamp
    _compose end ${pipeline_lines[@]+"${pipeline_lines[@]}"} "${lines[@]}" "ExitCode: $code" "EndTime: $stamp" "Signals: $words" 'Status: Ended'
    _deliver
    _describe_message end
    json_report="${json_report%\}}, \"messages\": [$json_messages]}"
}

_describe_message() {  # KIND
    _log "$1 message: $result${route:+ ($route)}"
    _object kind "$1" id "$id@fermigrid" route "$route" result "$result" text "$text"
    json_messages+=${json_messages:+, }$object
}

# Each way for a message ends with 0: sent, 1: certainly not, 2: perhaps. What perhaps arrived is not tried another way.
_deliver() {  # -> result, route
    local limit last=0 way status mark routes=()
    exec {mark}<> <(:)
    for way in "P2_SENDMAIL=${P2_SENDMAIL:-}" ${env_list[@]+"${env_list[@]}"} ${row_env[@]+"${row_env[@]}"}; do
        [[ $way != P2_SENDMAIL=?* ]] || routes=("program:${way#*=}")
    done
    passed=${#pending[@]} end_by=0
    _get limit message.timeout 30
    if _ending_signal; then _now; limit=3 last=$((now_ms + 3000)); fi  # the batch system has little patience
    result=unsent route=''
    for route in ${routes[@]+"${routes[@]}"} ${message_via[@]+"${message_via[@]}"}; do
        status=0 way=${route#*:}
        case $route in
            sendmail:*) _run "$limit" _pipe "$way" -t -i -f "${set_of[message.from]:-}" || status=$? ;;
            program:*) _run "$limit" _pipe "$way" || status=$? ;;
            spool:*) _run "$limit" _spool "$way" || status=$? ;;
            smtp:*)
                _run $((limit + 2)) _smtp "${way#//}" || status=$?
                [ "$status" != 137 ] || read -r -t 0.1 -u "$mark" _ || status=1 ;;  # killed before it sent the text
            *) _run $((limit + 2)) _post "$route" || status=$? ;;
        esac
        case $status in
            0) result=sent; return 0 ;;
            2 | 137) result=doubt; return 0 ;;
        esac
        _now
        [ "$last" = 0 ] || [ "$now_ms" -lt "$last" ] || return 0
    done
}

_pipe() {  # PROGRAM ARGUMENTS...
    local status=0
    { printf '%s' "$text" 2> /dev/null || :; } | "$@" >&2 || status=$?
    [ "$status" -le 128 ] || return 2
    [ "$status" = 0 ] || return 1
}

_spool() {  # FOLDER
    umask 077
    if printf '%s' "$text" > "$1/.$id" && mv -f -- "$1/.$id" "$1/$id"; then return 0; fi
    rm -f -- "$1/.$id"
    return 1
}

_post() {  # URL
    local ca=${set_of[message.ca]:-} type='Content-Type: message/rfc822' status=0 said
    if command -v curl > /dev/null; then
        said=$(printf '%s' "$text" | curl -q -s -o /dev/null -m "$limit" --data-binary @- -H "$type" -H Expect: \
            ${ca:+--cacert "$ca"} -w '%{http_code} %{size_upload}' -- "$1")
        case $said in
            2*) return 0 ;;
            '000 0'* | [3-5]*) return 1 ;;
        esac
        return 2
    fi
    wget -q --tries=1 -T "$limit" --max-redirect=0 --post-data="$text" --header="$type" ${ca:+--ca-certificate="$ca"} -O /dev/null -- "$1" || status=$?
    case $status in 0) ;; 5 | 8 | 127) return 1 ;; *) return 2 ;; esac
}

_smtp() {  # HOST[:PORT]; no line of a message begins with a dot, which would have to be doubled
    local host=$1 port=25 fd status=0 until
    if [[ $1 =~ ^(.*):([0-9]+)$ ]]; then host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}; fi
    host=${host#[}
    _now
    until=$((now_ms + limit * 1000))
    { exec {fd}<> "/dev/tcp/${host%]}/$port"; } 2> /dev/null || return 1
    { _say 220 && _say 250 "HELO $HOSTNAME" && _say 250 "MAIL FROM:<${set_of[message.from]:-}>" &&
        _say 25 "RCPT TO:<${set_of[message.to]:-}>" && _say 354 DATA; } || return 1
    printf '\n' >&"$mark"
    _say 250 "${text//$'\n'/$'\r\n'}." || status=$?
    printf 'QUIT\r\n' >&"$fd" || :
    return "$status"
}

_say() {  # CODE [LINE]: what the server must answer, to what
    local line
    if [ $# = 2 ]; then printf '%s\r\n' "$2" >&"$fd" || return 1; fi
    while :; do
        _now
        [ "$now_ms" -lt "$until" ] && IFS= read -r -t $(((until - now_ms) / 1000 + 1)) -u "$fd" line || return 2
        [[ $line == ???-* ]] || break
    done
    [[ $line != "$1"* ]] || return 0
    [[ $line != [45]* ]] || return 1
    return 2
}

# pipelineSet and pipelineCreateStream: programs, for any language, and functions of bash, for a script that makes itself a PATH.
# Bash knows exported functions by two spellings; env can set such names, sh cannot.
_write_tools() {  # COMMAND -> tools: lines of the launcher, which has the command as its arguments
    local name spelling functions='' eol=$'\r\n' folder=$control/bin
    mkdir -p -- "$folder"
    for name in pipelineSet pipelineCreateStream; do
        _quote "$view/.fermigrid/summary"
        printf '%s\n' '#!/bin/sh' 'LC_ALL=C' 'fail() { echo "${0##*/}: $1" >&2; exit 2; }' 'case ${0##*/}/$# in' \
            'pipelineSet/2) key=Pipeline.$1 n=-1 value=$2 ;;' \
            'pipelineCreateStream/[23]) key=PipelineCreateStream.$1.$2 n=$2 value=${3-} ;;' \
            '*) fail "usage: pipelineSet NAME VALUE; pipelineCreateStream TASK NUMBER|-1 ARGUMENTS" ;;' 'esac' \
            'case $1 in "" | *[!A-Za-z0-9._/-]*) fail "bad name $1" ;; esac' \
            'case $n in -1) ;; "" | *[!0-9]*) fail "bad number $n" ;; esac' \
            "case \$value in *[\"$eol\"]*) fail 'a value is one line' ;; esac" \
            '[ $((${#key} + ${#value})) -lt 990 ] || fail "longer than 990 bytes"' \
            "printf '%s: %s\\n' \"\$key\" \"\$value\" >> $quoted" > "$folder/$name"
        for spelling in '%%' '()'; do
            _quote "$view/.fermigrid/bin/$name"
            _quote "BASH_FUNC_$name$spelling=() { $quoted \"\$@\"; }"
            functions+=" $quoted"
        done
    done
    chmod 755 "$folder/"*
    _quote "$view/.fermigrid/bin"
    tools="export PATH=$quoted:\"\$PATH\""$'\n'
    [[ $1 == *=* ]] || tools+="command -v env > /dev/null && exec env$functions \"\$@\""$'\n'
}
