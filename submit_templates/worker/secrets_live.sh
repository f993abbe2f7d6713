# shellcheck shell=bash
# Credentials that end: HTCondor's tokens and X.509 proxies. Those that it renews while the job runs are copied again, under the
# same name, so that the payload finds the new one where the old one was. `live` is the time of the next look, in milliseconds.

live_from=() live_to=() live_said=() end_name=() end_file=() end_at=()

_take_live() {  # INDEX: a file that HTCondor or DIRAC keeps for the job
    local name=${set_of[secret.from.$1]:-} file from='' said=''
    [[ $name =~ $ONE_NAME ]] || _bad "secret.from: '$name'"
    if [ "${set_of[secret.kind.$1]}" = token ]; then
        set -- "$1" "${_CONDOR_CREDS:-${origin:-$scratch}/.condor_creds}/$name" "${origin:-$scratch}/.condor_creds/$name"
    else
        set -- "$1" "$scratch/$name" "${X509_USER_PROXY:-}"
    fi
    for file in "${@:2}"; do [ -n "$from" ] || [ ! -f "$file" ] || from=$file; done
    [ -n "$from" ] || _no_secret "$1" "the job was given no $name (it was looked for in ${2%/*})"
    live_from+=("$from") live_to+=("$secret_dir/${secret[$1]}/$name")
    _copy_live $((${#live_from[@]} - 1)) || _no_secret "$1" "$name cannot be copied: $said"
    _now
    live=$now_ms
}

_copy_live() {  # NUMBER -> said. Whoever reads sees the old one or the new one, whole
    _quietly 10 cp --preserve=timestamps --no-preserve=mode -- "${live_from[$1]}" "$secret_dir/.new" || return 1
    said="it is empty"
    [ -s "$secret_dir/.new" ] || return 1
    mv -fT -- "$secret_dir/.new" "${live_to[$1]}"
}

_renew_secrets() {  # called while the payload runs; looks only from time to time, and without a process of its own
    local i k said='' answer=()
    _now
    [ "$now_ms" -ge "$live" ] || return 0
    live=$((now_ms + ${FERMIGRID_RENEW:-30} * 1000))
    for i in "${!live_from[@]}"; do
        [ "${live_from[i]}" -nt "${live_to[i]}" ] || [ "${live_from[i]}" -ot "${live_to[i]}" ] || continue
        [ -f "${live_from[i]}" ] || continue  # it may be there at the next look
        if ! _copy_live "$i"; then
            [ "${live_said[i]:-}" = "$said" ] || _log "not renewed: ${live_to[i]#"$secret_dir/"}: $said"
            live_said[i]=$said
            continue
        fi
        live_said[i]=''
        _log "renewed: ${live_to[i]#"$secret_dir/"}"
        for k in "${!end_file[@]}"; do [ "${end_file[k]}" != "${live_to[i]}" ] || _find_end "$k"; done
    done
}

_note_end() {  # INDEX of a secret.point: a credential that has ended is none
    local k=${#end_file[@]} name=${secret[${secret_point_of[$1]}]} point utc
    _find_point "$secret_dir" "${secret_point_of[$1]}" "${secret_point[$1]}"
    end_name[k]=$name end_file[k]=$point end_at[k]=''
    _find_end "$k"
    _now
    [ "${end_at[k]}" != none ] || [[ ${secret_point[$1]} != X* ]] || _finish "$EXPIRED" "the X.509 proxy of secret $name has no certificate in it"
    [ -n "$live" ] || live=$((now_ms + 30000))
    _has_ended "$k" || return 0
    _utc "${end_at[k]}"
    _finish "$EXPIRED" "the credential of secret $name has expired: it ended at $utc"
}

_find_end() {  # NUMBER -> end_at: seconds of the epoch; empty when it cannot be told
    answer=()
    _ask 30 _end_of "${end_file[$1]}" || :
    end_at[$1]=${answer[0]:-}
}

_end_of() {  # FILE; in a child -> the end of the first certificate of a proxy to end, or of a token
    local text='' part end first=''
    IFS= read -r -d '' text < "$1" || :
    if [[ $text =~ ^[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+[[:space:]]*$ ]]; then
        part=${BASH_REMATCH[1]//-/+}
        part=${part//_/\/}
        while [ $((${#part} % 4)) != 0 ]; do part+='='; done
        part=$(printf '%s' "$part" | base64 -d)
        [[ ! $part =~ \"exp\"[[:space:]]*:[[:space:]]*([0-9]{1,12}) ]] || first=${BASH_REMATCH[1]}
    elif command -v openssl > /dev/null; then
        first=none
        while [[ $text == *'-----BEGIN CERTIFICATE-----'* ]]; do
            text=${text#*'-----BEGIN CERTIFICATE-----'}
            end=$(printf '%s\n' "-----BEGIN CERTIFICATE-----${text%%'-----END'*}-----END CERTIFICATE-----" | openssl x509 -noout -enddate) || continue
            end=$(date -u -d "${end#*=}" +%s) || continue
            if [ "$first" = none ] || [ "$end" -lt "$first" ]; then first=$end; fi
        done
    fi
    printf '%s\n' "$first"
}

_has_ended() { [[ ${end_at[$1]} =~ $NUMBER ]] && [ "${end_at[$1]}" -le $((begin + (now_ms - begin_ms) / 1000)) ]; }  # NUMBER

_tell_ends() {  # what ended while the job ran, which may be why it failed
    local k utc
    live=''
    _now
    for k in "${!end_at[@]}"; do
        _has_ended "$k" || continue
        _utc "${end_at[k]}"
        _log "the credential of secret ${end_name[k]} ended at $utc, while the job ran, and was not renewed"
    done
}
