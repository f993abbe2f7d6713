# fermigrid itself inside the pool, for what a schedd runs on its own machine: jobs of the scheduler universe. Its packages
# are those of pyproject.toml for the pool's Python; itself is this checkout as it is now. Sourced by ci/pool.
# shellcheck shell=bash

start_fermigrid() {  # beside the pool that runs
    local packages copy=$POOL_DIR/fermigrid
    packages=$CACHE/fermigrid-$({ recipe_digest inside.sh rootfs.sh rootfs.packages rootfs.pins; needed_packages; } | sha256sum | cut -c 1-12)
    cached "$packages" build_packages "$ROOTFS"
    touch -c "$packages"
    mkdir -p "$copy"
    place "$packages/packages" "$copy/$(basename "$packages")"
    rm -rf "$copy/checkout"
    mkdir "$copy/checkout"
    ( cd "$RECIPES/../.." && cp -r fermigrid submit_templates sites schemas "$copy/checkout" )
    cat > "$copy/fermigrid" << EOF
#!/bin/sh
# fermigrid in the pool: ci/pool as fermi $copy/fermigrid ...
export PYTHONPATH=$copy/checkout:$copy/$(basename "$packages") PYTHONDONTWRITEBYTECODE=1 FERMIGRID_SITES=$POOL_DIR/sites
exec /usr/bin/python3 -P -m fermigrid "\$@"
EOF
    chmod 755 "$copy/fermigrid"
    inside setpriv --reuid "$FERMI_UID" --regid "$FERMI_UID" --clear-groups "$copy/fermigrid" --version > /dev/null ||
        die "fermigrid does not run inside the pool (its words are above)"
}

needed_packages() {
    python3 -c 'import sys, tomllib; print(*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], sep="\n")' \
        "$RECIPES/../../pyproject.toml"
}

build_packages() {  # FOLDER ROOTFS -> FOLDER/packages
    local version
    python3 -m pip --version > /dev/null 2>&1 || install_packages python3-pip
    version=$(find "$2/usr/bin" -name 'python3.[0-9]*' -printf '%f\n' | sed -n 's/^python\(3\.[0-9]*\)$/\1/p' | head -n 1)
    needed_packages > "$1/needed"
    python3 -m pip --quiet --quiet --disable-pip-version-check install --no-compile --root-user-action ignore \
        --target "$1/packages" --only-binary=:all: --implementation cp --python-version "$version" \
        --requirement "$1/needed" > "$1/pip.log" 2>&1 < /dev/null ||
        { tail -n 15 "$1/pip.log" >&2; die "pip could not fetch fermigrid's packages for Python $version (its words are above)"; }
    chown -R "$FERMI_UID:$FERMI_UID" "$1"
    # compiled once: in a pool nobody writes there
    as_builder "$2" "$1" sh -ec '
        python3 -W ignore -m compileall -q -j 0 /build/packages > /dev/null || true
        PYTHONPATH=/build/packages python3 -c "import click, cryptography, htcondor2, jinja2, pydantic, rich, yaml"' ||
        die "fermigrid'\''s packages cannot be imported by the Python $version of the pool"
    chown -R 0:0 "$1"
}
