# shellcheck shell=bash
# Fetching a file over HTTP, for the image and for inputs.

# Fetches URL to PART, resuming what is there when the server says that it is the same file still. Tries again what may
# pass; comes back when the server says, PATIENCE times (4). -> fetch_result, fetch_damage, fetch_tries
_fetch() {  # URL PART DEADLINE_MS [PATIENCE [TRIES]]
    local url=$1 part=$2 tries=0 most status code wait
    fetch_damage=''
    while :; do
        tries=$((tries + 1)) most=${5:-4} fetch_tries=$tries status=0 code='' wait=$((1 << (tries - 1)))
        _now
        if [ "$3" -le $((now_ms + 1000)) ]; then fetch_result=timeout; return 1; fi
        if command -v curl > /dev/null; then _curl "$1" "$2" $((($3 - now_ms) / 1000)) || status=$?
        elif command -v wget > /dev/null; then _wget "$1" "$2" $((($3 - now_ms) / 1000)) || status=$?
        else fetch_result="neither curl nor wget"; return 1; fi
        _read_head "$part.head"
        [ "$status" != 0 ] || return 0
        case $status:$code in
            33:* | *:416) rm -f -- "$part" "$part.head" ;;  # it cannot be resumed: from the start
            23:*) fetch_result="cannot be written"; return 1 ;;
            137:*) fetch_result=timeout; return 1 ;;
            *:429 | *:5??)
                fetch_result=$code
                [ -z "$retry_after" ] || wait=$((retry_after + RANDOM % (retry_after / 4 + 2))) most=${4:-4}
                ;;
            *:4??) fetch_result=$code; return 1 ;;
            6:* | 7:* | 4:*) fetch_result="not reached ($status)" most=2 ;;
            28:*) fetch_result="stalled" ;;
            *) fetch_result="failed ($status)" ;;
        esac
        _now
        if [ "$tries" -ge "$most" ] || [ $((now_ms + wait * 1000)) -ge "$3" ]; then return 1; fi
        _log "fetch: $url: ${fetch_result:-restarted}; again in $wait s"
        _sleep "$wait.$((RANDOM % 10))"
    done
}

_curl() {  # URL PART SECONDS
    local resume=() proxy=() before='' kept='' code etag retry_after
    { read -r before; read -r kept; } 2> /dev/null < "$2.url" || :
    _read_head "$2.head"
    [[ $code != 20? ]] || kept=$etag  # of the answer that the part comes from; a 503 after it has none
    if [ -s "$2" ] && [ "$before" = "$1" ] && [[ $kept == \"*\" ]]; then
        resume=(-C - -H "If-Range: $kept")
    else
        rm -f -- "$2" "$2.head"
        kept=''
    fi
    printf '%s\n%s\n' "$1" "$kept" > "$2.url" || return 23
    [ -z "${set_of[http_proxy]:-}" ] || proxy=(--proxy "${set_of[http_proxy]}")
    _run $(($3 + 10)) curl -q -g -sS -f -L --max-redirs 10 --proto '=http,https' --proto-redir '=http,https' \
        --connect-timeout 20 --speed-limit 1000 --speed-time "${FERMIGRID_STALL:-30}" --max-time "$3" \
        ${proxy[@]+"${proxy[@]}"} ${resume[@]+"${resume[@]}"} -D "$2.head" -o "$2" -- "$1"
}

_wget() {  # URL PART SECONDS; from the start each time
    local more=()
    rm -f -- "$2" "$2.head"
    [ -z "${CURL_CA_BUNDLE:-}" ] || more=("--ca-certificate=$CURL_CA_BUNDLE")
    [ -z "${set_of[http_proxy]:-}" ] || more+=(-e "http_proxy=${set_of[http_proxy]}" -e "https_proxy=${set_of[http_proxy]}")
    _run "$3" wget -nv -S --tries=1 --connect-timeout=20 --read-timeout="${FERMIGRID_STALL:-30}" \
        ${more[@]+"${more[@]}"} -O "$2" -- "$1" 2> "$2.head" || return $(($? == 3 ? 23 : $?))
}

_read_head() {  # FILE of response headers -> code, etag, retry_after in seconds: those of the last response in it
    local line at='' until
    code='' etag='' retry_after=''
    [ -r "$1" ] || return 0
    while IFS= read -r line; do
        line=${line%$'\r'}
        line=${line#"${line%%[! ]*}"}
        case $line in
            HTTP/*) code=${line#* } code=${code%% *} etag='' retry_after='' ;;
            [Ee][Tt][Aa][Gg]:*) etag=${line#*:} etag=${etag# } ;;
            [Dd]ate:*) at=${line#*:} ;;
            [Rr]etry-[Aa]fter:*) retry_after=${line#*:} retry_after=${retry_after# } ;;
        esac
    done < "$1"
    if [[ $retry_after == *:* ]]; then  # a date, by the clock of the server
        until=$(date -d "$retry_after" +%s 2> /dev/null) && at=$(date -d "${at:-now}" +%s 2> /dev/null) && retry_after=$((until - at)) || :
    fi
    [[ $retry_after =~ ^[0-9]{1,5}$ ]] || retry_after=''
}
