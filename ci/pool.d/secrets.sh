# HTCondor's credential daemon beside a running pool, with an issuer of SciTokens of its own. Sourced by ci/pool, which
# has set CREDMON, the folder with the issuer's Python packages.
# shellcheck shell=bash

build_credmon() {  # FOLDER
    python3 -m pip --version > /dev/null 2>&1 || install_packages python3-pip
    python3 -m pip --quiet --quiet --disable-pip-version-check install --no-compile --root-user-action ignore --no-deps \
        --target "$1" --only-binary=:all: --requirement "$RECIPES/credmon.requirements" < /dev/null ||
        die "pip could not fetch the parts of the token issuer (its words are above)"
    rm -rf "${1:?}/bin"
}

start_secrets() {  # beside the pool that runs
    if secrets_answer; then say "the credential daemon runs already"; return 0; fi
    cached "$CREDMON" build_credmon
    rm -rf "$POOL_DIR/etc/credmon"
    cp -r "$CREDMON" "$POOL_DIR/etc/credmon"
    mkdir -p "$POOL_DIR/state/oauth"
    chgrp "$(awk -F : '$1 == "condor" { print $4 }' "$ROOTFS/etc/passwd")" "$POOL_DIR/state/oauth"
    chmod 2770 "$POOL_DIR/state/oauth"      # after chgrp, which may take the setgid bit away
    rm -f "$POOL_DIR/state/oauth/CREDMON_COMPLETE"
    fill_in secrets-config.in > "$POOL_DIR/etc/config.d/secrets"
    inside condor_reconfig > /dev/null || explain_failure "the pool's daemons do not read their settings anew"
    wait_until_secrets_ready
}

forget_secrets() { rm -f "$POOL_DIR/etc/config.d/secrets"; }

has_secrets() { [ -e "$POOL_DIR/etc/config.d/secrets" ]; }

secrets_answer() {
    has_secrets && [ -e "$POOL_DIR/state/oauth/CREDMON_COMPLETE" ] &&
        inside condor_status -any -constraint 'MyType == "CredD"' -af Name 2> /dev/null | grep -q .
}

wait_until_secrets_ready() {
    local deadline=$((SECONDS + ${POOL_START_LIMIT:-60}))
    until secrets_answer; do
        alive || explain_failure "the pool ended while the credential daemon was starting"
        [ "$SECONDS" -lt "$deadline" ] ||
            explain_failure "after ${POOL_START_LIMIT:-60} s the credential daemon does not answer (POOL_START_LIMIT=seconds waits longer)"
        sleep 0.1
    done
}

secrets_status() {
    secrets_answer || die "the credential daemon does not answer (see $POOL_DIR/log/CredLog, CredMonOAuthLog)"
    echo "CredD, SciTokens of https://issuer.fermigrid.test"
}
