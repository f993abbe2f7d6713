# What every part of ci/pool needs: messages, the machine's abilities, the cache and its lock. Sourced.
# shellcheck shell=bash disable=SC2034

RECIPES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${FERMIGRID_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/fermigrid}/pool
FERMI_UID=20001
PROD_UID=20002

say() { printf 'pool: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

need_root() {
    if [ "$(id -u)" != 0 ]; then
        die "must run as root: it makes mounts, and its jobs run as users of their own"
    fi
}

need_namespaces() {
    need_programs unshare:util-linux mount:mount nsenter:util-linux setpriv:util-linux flock:util-linux
    local why
    why=$(unshare --mount --pid --fork --kill-child mount --make-rprivate / 2>&1) ||
        die "this machine gives root no mount and process namespaces ($why); a container needs --privileged or CAP_SYS_ADMIN"
    why=$(setpriv --reuid "$FERMI_UID" --regid "$FERMI_UID" --clear-groups unshare --user --map-root-user true 2>&1) ||
        die "ordinary users get no user namespaces here ($why), so Apptainer cannot run; look at the kernel settings" \
            "user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
}

need_programs() {  # PROGRAM:PACKAGE... ; installs what is missing, without questions
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" > /dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

install_packages() {
    say "installing $*"
    local log
    log=$(mktemp)
    if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"; } \
        > "$log" 2>&1 < /dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "apt-get could not install $* (its last words are above)"
    fi
    rm -f "$log"
}

need_space() {  # FOLDER MEGABYTES
    local free
    free=$(df --output=avail -m "$1" | tail -n 1 | tr -d ' ')
    [ "$free" -ge "$2" ] || die "$1 has $free MB free and $2 MB are needed: make room, or choose another place"
}

# The archive that this machine's own apt uses, so that no host name is written anywhere.
debian_mirror() {
    local uri
    # shellcheck disable=SC2016
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 '/debian/$') ||
        die "apt's configuration names no Debian archive (apt-get indextargets shows none that ends in /debian/)"
    printf '%s\n' "$uri"
}

# A small Debian tree without documentation. Arguments after the first two are mmdebstrap's.
debootstrap_into() {  # FOLDER SUITE ARG...
    local folder=$1 suite=$2 log=$1.log
    shift 2
    # the dates of a mirror's Release files may be past
    mmdebstrap --mode=root --format=directory \
        --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        "$suite" "$folder" "$@" > "$log" 2>&1 < /dev/null ||
        { tail -n 25 "$log" >&2; die "mmdebstrap could not make the $suite tree (its last words are above)"; }
    rm -f "$log"
}

recipe_digest() {  # FILE... ; names one state of the recipe
    { uname -m; cd "$RECIPES" && sha256sum "$@"; } | sha256sum | cut -c 1-12
}

# Builds FOLDER with the function BUILDER in a temporary folder, and renames it: a half build never has the final name.
cached() {  # FOLDER BUILDER ARG...
    local folder=$1 builder=$2 began=$SECONDS
    shift 2
    [ ! -d "$folder" ] || return 0
    mkdir -p "$CACHE"
    exec {cache_lock}> "$CACHE/lock"
    flock -n "$cache_lock" || { say "waiting for another build"; flock "$cache_lock"; }
    if [ ! -d "$folder" ]; then
        rm -rf "$CACHE"/.building.*
        # what nobody has started a pool from for a month
        find "$CACHE" -mindepth 1 -maxdepth 1 -type d -mtime +30 -exec rm -rf {} +
        need_space "$CACHE" 3000
        say "building $(basename "$folder")"
        mkdir -m 755 "$CACHE/.building.$$"
        ( "$builder" "$CACHE/.building.$$" "$@" ) || { rm -rf "$CACHE/.building.$$"; die "$(basename "$folder") was not built"; }
        mv -T "$CACHE/.building.$$" "$folder"
        say "built $(basename "$folder") in $((SECONDS - began)) s"
    fi
    exec {cache_lock}>&-
}

# Runs a command as the user fermi inside ROOTFS, with FOLDER as /build and temporary files in memory.
as_builder() {  # ROOTFS FOLDER COMMAND...
    local rootfs=$1 folder=$2
    shift 2
    "$RECIPES/enter-rootfs" "$rootfs" "$folder:/build" -- \
        setpriv --reuid "$FERMI_UID" --regid "$FERMI_UID" --clear-groups \
        env HOME=/var/tmp APPTAINER_TMPDIR=/var/tmp "$@"
}
