# shellcheck shell=bash
# The checksum that XRootD and Rucio know, for batches whose inputs come with it.

_adler32() {  # FILE -> adler; empty when no tool can tell
    local tool script='import sys,zlib,mmap;print("%08x"%(zlib.adler32(mmap.mmap(open(sys.argv[1]).fileno(),0,access=1))&0xffffffff))'
    for tool in xrdadler32 python3 python /usr/libexec/platform-python _slow_adler32; do
        adler=''
        command -v "$tool" > /dev/null || continue
        _left
        if [[ $tool == *python* ]]; then _ask "$left" "$tool" -c "$script" "$1"; else _ask "$left" "$tool" "$1"; fi || :
        adler=${answer[0]:-} adler=${adler%% *}
        [[ ! $adler =~ ^[0-9a-f]{8}$ ]] || return 0
    done
    _log "stage-in: no tool here can take the adler32 of $1"
}

_slow_adler32() {  # FILE; 10 MB a second
    od -An -v -tu1 -w64 -- "$1" | awk 'BEGIN{a=1}{for(i=1;i<=NF;i++)b+=a+=$i;a%=65521;b%=65521}END{printf "%04x%04x\n",b,a}'
}
