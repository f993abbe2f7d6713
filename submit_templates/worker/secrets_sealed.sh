# shellcheck shell=bash
# Sealed secrets: a tar file, signed (CMS SignedData), then enveloped for the site's certificate (CMS EnvelopedData), both DER.
# The envelope alone proves nothing: with a wrong key, or an altered byte, openssl may decrypt garbage and be content. The signature
# inside counts, by the one certificate that job.env names.

_open_sealed() {  # INDEX
    local folder=$secret_dir/${secret[$1]} key=${set_of[secret.key.$1]:-} certificate=${set_of[secret.certificate.$1]:-}
    local file=${set_of[secret.from.$1]:-} signer=${set_of[secret.signer.$1]:-} size='' said='' limit came sealed woken=()
    _get limit limit.path 30
    # a fault of this node, not of the secret: another one may have it
    command -v openssl > /dev/null || _finish "$STAGE_IN" "secret ${secret[$1]}: it is sealed, and there is no openssl on $HOSTNAME to open it"
    _check_came "$1" "$file" "${set_of[secret.sha256.$1]:-}"
    sealed=$came
    _check_came "$1" "$signer" "${set_of[secret.signer.sha256.$1]:-}"
    [ "$(grep -c -e '-----BEGIN ' -- "$came")" = 1 ] || _no_secret "$1" "$signer is not one certificate"
    _wake_all "$key" "$certificate"
    [ "${woken[*]}" = "there there" ] || _no_secret "$1" "the site's key $key is ${woken[0]} on $HOSTNAME, its certificate $certificate ${woken[1]}"
    for said in "$key" "$certificate"; do [ -r "$said" ] || _no_secret "$1" "$said cannot be read by this user on $HOSTNAME"; done
    _quietly "$limit" openssl cms -decrypt -binary -inform DER -in "$sealed" -recip "$certificate" -inkey "$key" -passin pass: -out "$secret_dir/.signed" ||
        _no_secret "$1" "$file cannot be opened with the key $key: it is not sealed for the certificate $certificate, or the two do not belong together ($said)"
    # the signer is looked for in that one file, not among certificates that the content brings along
    _quietly 60 openssl cms -verify -binary -inform DER -in "$secret_dir/.signed" -nointern -noverify -certfile "$came" -out "$secret_dir/.tar" ||
        _no_secret "$1" "the content of $file is altered, or not signed by $signer, or $key is the wrong key ($said)"
    _check_members "$1"
    _quietly 60 _read_from "$secret_dir/.tar" tar -x -k --no-same-owner --no-same-permissions -C "$folder" -f - ||
        _no_secret "$1" "$file cannot be unpacked: $said"
    _check_seal "$1" "$folder/.fermigrid-seal"
    _quietly 60 find "$folder" -type f -exec chmod 600 {} + -o -exec chmod 700 {} + || _no_secret "$1" "$file cannot be made private: $said"
    rm -f -- "$secret_dir/.signed" "$secret_dir/.tar" "$folder/.fermigrid-seal" "$sealed"  # another secret may have the same signer
}

_check_came() {  # INDEX NAME SHA256 -> came: it came with the job, as it was sent
    [[ $2 =~ $ONE_NAME && -n $3 ]] || _bad "secret ${secret[$1]} is sealed, but '$2' has no digest"
    _find_came "$2"
    [ -f "$came" ] || _no_secret "$1" "$2 did not come with the job"
    _size "$came"
    [ "$size" -le $((SECRET_BYTES + SECRET_BYTES / 4)) ] || _no_secret "$1" "$2 has $size bytes: too many for a sealed secret"
    _sha256 "$came"
    [ "${answer[0]}" = "$3" ] || _no_secret "$1" "$2 was altered on its way: its sha256 is ${answer[0]}"
}

_read_from() { "${@:2}" < "$1"; }  # FILE COMMAND...; tar does not unpack compressed content that it reads so

_check_members() {  # INDEX: the tar file holds the seal, then plain files and folders that stay where they are put
    local line name total=0
    _ask 60 _read_from "$secret_dir/.tar" tar -tv --numeric-owner --quoting-style=escape -f - || :
    [[ ${answer[0]:-} == *\ .fermigrid-seal ]] || _no_secret "$1" "what is sealed has no seal in it: make it with 'fermigrid secret seal'"
    for line in "${answer[@]}"; do
        [[ $line =~ ^[-d][^\ ]*\ +[0-9]+/[0-9]+\ +([0-9]{1,12})\ [-0-9]+\ [:0-9]+\ (.+)$ ]] ||
            _no_secret "$1" "what is sealed has something that is no plain file or folder: ${line##*:?? }"
        total=$((total + BASH_REMATCH[1])) name=/${BASH_REMATCH[2]}/
        [[ $name != //* && $name != */../* ]] || _no_secret "$1" "what is sealed has a name that leads elsewhere: ${BASH_REMATCH[2]}"
    done
    [ "$total" -le $((SECRET_BYTES + 1024)) ] || _no_secret "$1" "what is sealed has $total bytes: too many for a secret"
}

_check_seal() {  # INDEX FILE: the name and the dates that were signed with the content; times in seconds, UTC
    local line name='' not_before='' not_after='' utc now=$((begin + (now_ms - begin_ms) / 1000)) here
    while IFS= read -r line; do
        case $line in name=*) name=${line#*=} ;; not_before=*) not_before=${line#*=} ;; not_after=*) not_after=${line#*=} ;; esac
    done < "$2"
    [[ $not_before =~ $NUMBER && $not_after =~ $NUMBER ]] || _no_secret "$1" "its seal has no dates"
    not_before=$((10#$not_before)) not_after=$((10#$not_after))
    [ "$name" = "${secret[$1]}" ] || _no_secret "$1" "what is sealed is the secret $name"
    _utc "$now"
    here="by the clock of $HOSTNAME it is $utc"
    _utc "$not_after"
    [ "$now" -lt "$not_after" ] || _no_secret "$1" "its seal ended at $utc; $here. Seal it anew"
    _utc "$not_before"
    # clocks differ a little
    [ "$now" -ge $((not_before - 300)) ] || _no_secret "$1" "its seal is good from $utc on; $here. Is one of the clocks wrong?"
}
