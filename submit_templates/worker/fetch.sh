# shellcheck shell=bash
# Fetching a file over HTTP, for the image and for inputs.

# Fetches URL to PART, resuming what is there when the server says that it is the same file still. Tries again what may
# pass, waits as long as the server asks for. -> fetch_result, fetch_damage
_fetch() {  # URL PART DEADLINE_MS
    local url=$1 part=$2 tries=0 most status code wait
    fetch_damage=''
    while :; do
        tries=$((tries + 1)) most=4 status=0 code='' wait=$((1 << (tries - 1)))
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
            *:429 | *:5??) fetch_result=$code; [ -z "$retry_after" ] || wait=$retry_after ;;
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
    local resume=() proxy=() before='' etag=''
    read -r before 2> /dev/null < "$2.url" || :
    _read_head "$2.head"
    if [ -s "$2" ] && [ "$before" = "$1" ] && [[ $etag == \"*\" ]]; then
        resume=(-C - -H "If-Range: $etag")
    else
        rm -f -- "$2" "$2.head"
        printf '%s\n' "$1" > "$2.url" || return 23
    fi
    [ -z "${set_of[http_proxy]:-}" ] || proxy=(--proxy "${set_of[http_proxy]}")
    _run $(($3 + 10)) curl -q -sS -f -L --max-redirs 10 --proto '=http,https' --proto-redir '=http,https' \
        --connect-timeout 20 --speed-limit 1000 --speed-time "${FERMIGRID_STALL:-30}" --max-time "$3" \
        ${proxy[@]+"${proxy[@]}"} ${resume[@]+"${resume[@]}"} -D "$2.head" -o "$2" -- "$1"
}

_wget() {  # URL PART SECONDS; from the start each time
    local proxy=()
    rm -f -- "$2" "$2.head"
    [ -z "${set_of[http_proxy]:-}" ] || proxy=(-e "http_proxy=${set_of[http_proxy]}" -e "https_proxy=${set_of[http_proxy]}")
    _run "$3" wget -nv -S --tries=1 --connect-timeout=20 --read-timeout="${FERMIGRID_STALL:-30}" \
        ${proxy[@]+"${proxy[@]}"} -O "$2" -- "$1" 2> "$2.head"
}

_read_head() {  # FILE of response headers -> code, etag, retry_after: those of the last response in it
    local line
    code='' etag='' retry_after=''
    [ -r "$1" ] || return 0
    while IFS= read -r line; do
        line=${line%$'\r'}
        line=${line#"${line%%[! ]*}"}
        case $line in
            HTTP/*) code=${line#* } code=${code%% *} etag='' retry_after='' ;;
            [Ee][Tt][Aa][Gg]:*) etag=${line#*:} etag=${etag# } ;;
            [Rr]etry-[Aa]fter:*) retry_after=${line#*:} retry_after=${retry_after# } ;;
        esac
    done < "$1"
    [[ $retry_after =~ ^[0-9]{1,5}$ ]] || retry_after=''
}
