# The software on the stand-in CVMFS: lat-python, a folder of Python packages for the light image's Python. Sourced by ci/pool.
# shellcheck shell=bash

build_software() {  # FOLDER ROOTFS LIGHT_IMAGE -> FOLDER/lat-python
    local packages=$1/lat-python tag
    python3 -m pip --version > /dev/null 2>&1 || install_packages python3-pip
    tag=$(image_python "$3")
    python3 -m pip --quiet --quiet --disable-pip-version-check install --no-compile --root-user-action ignore --no-deps --target "$packages" \
        --only-binary=:all: --implementation cp --python-version "$tag" \
        --platform "manylinux2014_$(uname -m)" --platform "manylinux_2_28_$(uname -m)" --platform any \
        --requirement "$RECIPES/lat-python.requirements" < /dev/null ||
        die "pip could not fetch lat-python (its words are above)"
    rm -rf "${packages:?}/bin"
    chown -R "$FERMI_UID:$FERMI_UID" "$1"
    prove_software "$@"
    chown -R 0:0 "$1"
}

image_python() {  # LIGHT_IMAGE -> 3.11
    local found
    found=$(find "$1/usr/bin" -name 'python3.[0-9]*' -printf '%f\n' | head -n 1)
    printf '%s\n' "${found#python}"
}

# Imported and compiled by the image's own Python: on CVMFS nobody could write the compiled files later.
prove_software() {  # FOLDER ROOTFS LIGHT_IMAGE
    local image=$1/image
    mkdir "$image"
    "$RECIPES/enter-rootfs" "$2" "$1:/build" "$3:/build/image:ro" -- \
        setpriv --reuid "$FERMI_UID" --regid "$FERMI_UID" --clear-groups env HOME=/build \
        apptainer --quiet exec --cleanenv --no-home --bind /build/lat-python:/opt/fermi/lat-python \
        --env PYTHONPATH=/opt/fermi/lat-python /build/image sh -ec '
            python3 -m compileall -q -j 0 /opt/fermi/lat-python > /dev/null || true
            python3 -c "import astropy.io.fits, numpy"' ||
        die "lat-python cannot be imported inside the light image"
    rmdir "$image"
}
