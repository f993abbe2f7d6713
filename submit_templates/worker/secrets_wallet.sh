# shellcheck shell=bash
# An Oracle wallet that was copied: the DIRECTORY in its sqlnet.ora wins over TNS_ADMIN, and says where the wallet was. It is made
# to say where the payload sees it. All else in the file stays as it is, byte for byte.

readonly WALLET_BYTES=32768
readonly ORACLE_GOES_ON='^[[:space:]]*([=(#]|$)'  # or it is the next parameter
readonly ORACLE_WORD=$'^([ \t\r\f\v]+|[^ \t\r\f\v()="\'#]+|"[^"]*"?|\'[^\']*\'?|.)'

_move_wallet() {  # INDEX of the secret.point that is TNS_ADMIN
    local i=${secret_point_of[$1]} point file size='' said=''
    _find_point "$secret_dir" "$i" "${secret_point[$1]}"
    file=$point/sqlnet.ora
    [ -f "$file" ] || return 0  # nothing says where it was
    _size "$file"
    [ "${size:-0}" -le "$WALLET_BYTES" ] || _no_secret "$i" "its sqlnet.ora has $size bytes: that is no Oracle configuration"
    _find_point "$secret_view" "$i" "${secret_point[$1]}"
    _quietly 60 _rewrite_wallet "${file%/*}" "$point" || _no_secret "$i" "its sqlnet.ora cannot be rewritten: $said"
    mv -fT -- "$file.new" "$file"
}

# FOLDER, and where the payload sees it -> sqlnet.ora.new; in a child. Word by word, since blanks, quotes, comments and the ends of
# lines may be anywhere. `state`: key (after DIRECTORY), value (after its =), old (in what is replaced).
_rewrite_wallet() {
    local line='' rest word end=$'\n' text='' depth=0 inside='' state='' old=''
    shopt -s nocasematch
    while [ -n "$end" ]; do
        IFS= read -r line || end=''
        if [[ $line =~ ^[[:space:]]*(ENCRYPTION_)?WALLET_LOCATION[[:space:]]*(=|$) ]]; then
            inside=yes depth=0
        elif [ "$depth" = 0 ] && [[ ! $line =~ $ORACLE_GOES_ON ]]; then
            inside=''
        fi
        rest=$line
        if [ -n "$inside" ]; then
            line=''
            while [[ $rest =~ $ORACLE_WORD ]]; do
                word=${BASH_REMATCH[1]} rest=${rest:${#BASH_REMATCH[1]}}
                _take_word "$1" "$2"
            done
            [ "$state" != old ] || _put_folder "$1" "$2"
        fi
        text+=$line$end
    done < "$1/sqlnet.ora"
    printf '%s' "$text" > "$1/sqlnet.ora.new"
    # bash has lost zero bytes, and nothing else
    [ "$(tr -d '\0' < "$1/sqlnet.ora" | wc -c)" = "$(wc -c < "$1/sqlnet.ora")" ] || { echo "it is no text" >&2; return 1; }
}

_take_word() {  # FOLDER SEEN; word, rest -> line, state, depth, inside
    case $state:$word in
        *:'#') [ "$state" != old ] || _put_folder "$1" "$2"; line+=$word$rest rest=''; return ;;
        old:')' | value:')') _put_folder "$1" "$2" ;;
        old:* | value:[![:space:]]*) old+=$word state=old; return ;;
        key:=) state=value ;;
        key:[![:space:]]*) state='' ;;
        :DIRECTORY) state=key ;;
    esac
    line+=$word
    case $word in '(') depth=$((depth + 1)) ;; ')') depth=$((depth - 1)) ;; esac
    [ "$word:$depth" != "):0" ] || inside=''
    [ -n "$inside" ] || { line+=$rest rest=''; }
}

_put_folder() {  # FOLDER SEEN -> line; the wallet is where the longest end of the old path leads to one, or beside the file
    local path=${old%"${old##*[![:space:]]}"} quote='' blanks=${old##*[![:space:]]}
    case $path in \"* | \'*) quote=${path:0:1} path=${path//[\"\']/} ;; esac
    [[ $2 != *[[:space:]\(\)]* ]] || quote=${quote:-\"}
    while [ -n "$path" ] && [ ! -e "$1/$path/cwallet.sso" ] && [ ! -e "$1/$path/ewallet.p12" ]; do
        case $path in */*) path=${path#*/} ;; *) path='' ;; esac
    done
    path=${path%/}
    case $path in . | .. | */..* | ../*) path='' ;; esac
    line+=$quote$2${path:+/$path}$quote$blanks
    old='' state=''
}
