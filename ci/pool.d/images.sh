# The images: directories for the stand-in CVMFS and the same images as SIF files for the HTTP server. Sourced by ci/pool.
# shellcheck shell=bash

IMAGE_SUITE=bookworm     # its Python is the one that lat-python is made for

build_images() {  # FOLDER ROOTFS -> FOLDER/cvmfs, FOLDER/http
    need_programs mmdebstrap:mmdebstrap
    local images=$1/cvmfs/fermi.test/images sifs=$1/http/images
    mkdir -p "$images" "$sifs" "$1/cvmfs/site" "$1/work"
    light_tree "$1/work/light"
    tiny_tree "$1/work/tiny" "$2"
    chown -R "$FERMI_UID:$FERMI_UID" "$1/work" "$images" "$sifs" "$1/cvmfs/site"
    make_image "$1" "$2" light light-1
    make_image "$1" "$2" tiny tiny-1
    mkdir "$images/broken-1"     # a path that exists and is no image
    cp -al "$images/light-1" "$1/cvmfs/site/default"     # the same files, but for the marker
    rm "$1/cvmfs/site/default/etc/fermigrid-image"
    echo site-default > "$1/cvmfs/site/default/etc/fermigrid-image"
    ( cd "$sifs" && sha256sum -- *.sif > SHA256SUMS )
    rm -rf "$1/work"
}

light_tree() {
    debootstrap_into "$1" "$IMAGE_SUITE" --variant=essential --include=python3,libstdc++6 "deb $(debian_mirror) $IMAGE_SUITE main"
    ( cd "$1" && rm -rf dev/* run/* var/lib/apt var/cache/* var/log/* usr/share/zoneinfo )
    touch "$1/etc/localtime" "$1/etc/resolv.conf" "$1/etc/hosts"     # Apptainer mounts onto these
    xargs -I {} mkdir -p "$1{}" < "$RECIPES/mount-points"
    echo light-1 > "$1/etc/fermigrid-image"
    chmod -R u+rwX "$1"
}

tiny_tree() {  # FOLDER ROOTFS ; a shell and small programs, no bash, and only two mount points
    local applet
    mkdir -p "$1"/{bin,cvmfs,dev,etc,home,proc,root,srv,sys,tmp,usr,var/tmp}
    cp "$2/usr/bin/busybox" "$1/bin/busybox"
    for applet in $("$2/usr/bin/busybox" --list | grep -vx busybox); do
        ln -s busybox "$1/bin/$applet"
    done
    printf 'NAME=tiny\nID=tiny\nVERSION_ID=1\nPRETTY_NAME="busybox image"\n' > "$1/etc/os-release"
    echo 'root:x:0:0:root:/root:/bin/sh' > "$1/etc/passwd"
    echo 'root:x:0:' > "$1/etc/group"
    touch "$1/etc/localtime" "$1/etc/resolv.conf" "$1/etc/hosts"
    echo tiny-1 > "$1/etc/fermigrid-image"
}

make_image() {  # FOLDER ROOTFS TREE NAME ; a tree becomes an image only through Apptainer
    as_builder "$2" "$1" sh -ec "
        apptainer --quiet build --sandbox /build/cvmfs/fermi.test/images/$4 /build/work/$3
        apptainer --quiet build /build/http/images/$4.sif /build/cvmfs/fermi.test/images/$4" ||
        die "Apptainer could not build the image $4"
}
