# The node: a Debian tree with HTCondor, Apptainer and nginx, the same for every pool of this machine and never written to
# while a pool runs. Sourced by ci/pool.
# shellcheck shell=bash

build_rootfs() {  # FOLDER -> FOLDER/rootfs, FOLDER/versions
    need_programs mmdebstrap:mmdebstrap
    local mirror root=$1/rootfs
    mirror=$(debian_mirror)
    # shellcheck disable=SC2016
    # HTCondor 25 is in forky, Apptainer only in sid; nothing else may come from sid
    debootstrap_into "$root" forky --variant=minbase --include="$(paste -s -d , "$RECIPES/rootfs.packages")" \
        --setup-hook='mkdir -p "$1/etc/apt/preferences.d"; cp "'"$RECIPES"'/rootfs.pins" "$1/etc/apt/preferences.d/pool"' \
        "deb $mirror forky main" "deb $mirror sid main"
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
    add_mount_points "$root"
    add_user "$root" fermi "$FERMI_UID"
    add_user "$root" prod "$PROD_UID"
    move_runtime "$root"
    add_sif_probe "$1"
    write_versions "$1"
}

add_mount_points() {
    ( cd "$1" && mkdir -p .old build cvmfs sps lscratch home var/lib/condor/execute var/cache/fermigrid && touch etc/resolv.conf )
}

add_user() {  # ROOTFS NAME UID
    echo "$2:x:$3:$3:$2:/home/$2:/bin/bash" >> "$1/etc/passwd"
    echo "$2:x:$3:" >> "$1/etc/group"
}

# Apptainer behind a symbolic link: a site without a runtime hides the folder, and the command is nowhere to be found.
# Not under its own name, or Apptainer would look for its other parts beside it.
move_runtime() {
    mkdir "$1/opt/runtime"
    mv "$1/usr/bin/apptainer" "$1/opt/runtime/program"
    ln -s /opt/runtime/program "$1/usr/bin/apptainer"
}

# The package lacks this file; without it a startd never says HasSIF, and jobs with container_image=*.sif wait for ever.
add_sif_probe() {
    install -d -o "$FERMI_UID" -g "$FERMI_UID" "$1/build"
    as_builder "$1/rootfs" "$1/build" apptainer --quiet build /build/exit_37.sif /usr/libexec/condor/singularity_test_sandbox ||
        die "Apptainer could not build HTCondor's test image"
    install -m 755 "$1/build/exit_37.sif" "$1/rootfs/usr/libexec/condor/exit_37.sif"
    rm -rf "$1/build"
}

write_versions() {
    local package
    for package in condor apptainer nginx; do
        # shellcheck disable=SC2016
        printf '%s=%s\n' "$package" "$(dpkg-query --root "$1/rootfs" -W -f '${source:Upstream-Version}' "$package")"
    done > "$1/versions"
}
