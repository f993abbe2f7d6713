# The engines behind HTCondor's grid universe, beside a running pool: a Slurm, and a schedd that acts as an HTCondor-CE.
# Sourced by ci/pool. They are in the pool's namespace, under its condor_master: the end of the pool is theirs.
# shellcheck shell=bash

SLURM_NODE=milan01

start_grid() {  # beside the pool that runs
    if grid_answers; then say "the grid's engines run already"; return 0; fi
    inside test -x /usr/sbin/slurmctld || die "this pool's node has no Slurm, it is from an older recipe: ci/pool stop, then start grid"
    make_grid_folders
    choose_grid_ports
    write_grid_settings
    mount_grid
    fill_in grid-config.in | sed "s#@NODE@#$SLURM_NODE#g" > "$POOL_DIR/etc/config.d/grid"
    inside condor_reconfig > /dev/null || explain_failure "the pool's condor_master does not read its settings anew"
    wait_until_grid_ready
}

forget_grid() { rm -f "$POOL_DIR/etc/config.d/grid"; }

has_grid() { [ -e "$POOL_DIR/etc/config.d/grid" ]; }

make_grid_folders() {
    local state=$POOL_DIR/state node=$POOL_DIR/nodes/$SLURM_NODE
    mkdir -p "$POOL_DIR"/{etc/slurm,log/grid} "$state"/slurm/{control,node} "$state/spool.ce" "$node"/{cache,lscratch}
    chmod 1777 "$POOL_DIR/log/grid" "$node"/{cache,lscratch}      # gridmanager's children log there as the owner of the jobs
    chown --reference="$state/spool" "$state/spool.ce"
    chown "$(slurm_user)" "$state/slurm/control"
    mkdir -p "$POOL_DIR"/nodes/p/{execute,cache,lscratch}
    chown --reference="$state/spool" "$POOL_DIR/nodes/p/execute"
    chmod 1777 "$POOL_DIR"/nodes/p/{cache,lscratch}
    install -m 755 "$RECIPES/pilot-wrapper" "$POOL_DIR/nodes/p/lscratch/"    # in /tmp a job would not see it
    [ -e "$POOL_DIR/log/SlurmJobs" ] || : > "$POOL_DIR/log/SlurmJobs"
    chown "$(slurm_user)" "$POOL_DIR/log/SlurmJobs"
}

slurm_user() { awk -F : '$1 == "slurm" { print $3 ":" $4 }' "$ROOTFS/etc/passwd"; }

choose_grid_ports() {  # below the pools' own
    # shellcheck disable=SC2034
    local PORT HTTP_PORT CONTROL_PORT='' NODE_PORT=''
    # shellcheck disable=SC1091
    . "$POOL_DIR/etc/ports"
    # shellcheck disable=SC1091
    if [ -s "$POOL_DIR/etc/grid-ports" ]; then . "$POOL_DIR/etc/grid-ports"; fi
    if [ -n "$CONTROL_PORT" ] && inside pgrep -x slurmctld > /dev/null; then return 0; fi
    CONTROL_PORT=$(free_port "${CONTROL_PORT:-$((PORT - 10000))}")
    NODE_PORT=$(free_port "${NODE_PORT:-$((CONTROL_PORT + 1))}")
    printf 'CONTROL_PORT=%s\nNODE_PORT=%s\n' "$CONTROL_PORT" "$NODE_PORT" > "$POOL_DIR/etc/grid-ports"
}

write_grid_settings() {
    local CONTROL_PORT NODE_PORT host=$HOSTNAME etc=$POOL_DIR/etc/slurm
    # shellcheck disable=SC1091
    . "$POOL_DIR/etc/grid-ports"
    fill_in slurm.conf.in | sed "s#@HOST@#${host%%.*}#g; s#@NODE@#$SLURM_NODE#g; s#@CONTROL_PORT@#$CONTROL_PORT#; s#@NODE_PORT@#$NODE_PORT#" \
        > "$etc/slurm.conf"
    echo 'CgroupPlugin=disabled' > "$etc/cgroup.conf"
    cp "$RECIPES/slurm-accounts.lua" "$etc/job_submit.lua"
    install -m 755 "$RECIPES/slurm-sacct" "$etc/sacct"
    [ -s "$etc/slurm.key" ] || ( umask 077; head -c 128 /dev/urandom > "$etc/slurm.key" )
    chown "$(slurm_user)" "$etc/slurm.key"
    # This program and the daemon that calls it trust a file of states for a minute; without it a job's end is seen at once
    sed 's/^def check_cache(.*, recurse=True):$/&\n    return None/' "$ROOTFS/usr/libexec/blahp/slurm_status.py" > "$etc/slurm_status.py"
    ! cmp -s "$ROOTFS/usr/libexec/blahp/slurm_status.py" "$etc/slurm_status.py" || die "blahp's slurm_status.py has no check_cache any more: its cache stays on"
    chmod 755 "$etc/slurm_status.py"
}

mount_grid() {  # onto places of the read-only node, for all that starts from now on
    local pair node=$POOL_DIR/nodes/$SLURM_NODE
    for pair in "$POOL_DIR/etc/slurm:/etc/slurm" "$POOL_DIR/etc/slurm/sacct:/usr/bin/sacct" \
        "$POOL_DIR/etc/slurm/slurm_status.py:/usr/libexec/blahp/slurm_status.py" \
        "$node/cache:/var/cache/fermigrid" "$node/lscratch:/lscratch"; do
        inside mountpoint -q "${pair#*:}" || inside mount --bind "${pair%%:*}" "${pair#*:}" ||
            explain_failure "${pair#*:} could not be mounted"
    done
}

grid_answers() {
    has_grid && inside sinfo --noheader --nodes="$SLURM_NODE" --format=%T 2> /dev/null | grep -qxE 'idle|mixed|allocated' &&
        inside condor_status -schedd ce@fermigrid.test -af Name 2> /dev/null | grep -q . &&
        inside condor_status -constraint 'GLIDEIN_Site == "SITEP"' -af Name 2> /dev/null | grep -q .
}

wait_until_grid_ready() {
    local deadline=$((SECONDS + ${POOL_START_LIMIT:-60}))
    until grid_answers; do
        alive || explain_failure "the pool ended while the grid's engines were starting"
        [ "$SECONDS" -lt "$deadline" ] ||
            explain_failure "after ${POOL_START_LIMIT:-60} s Slurm or the second schedd does not answer (POOL_START_LIMIT=seconds waits longer)"
        sleep 0.1
    done
}

grid_status() {
    grid_answers || die "Slurm or the second schedd does not answer (see $POOL_DIR/log/Slurm*Log, SchedLog.ce)"
    inside sinfo --noheader --format='Slurm %R: %D node, %T, at most %l'
}
