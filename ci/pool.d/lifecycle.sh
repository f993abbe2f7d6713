# Start and end of one pool. Sourced by ci/pool, which has set POOL_DIR, ROOTFS, IMAGES, SOFTWARE.
# shellcheck shell=bash

CLIENTS="condor_submit condor_q condor_rm condor_hold condor_release condor_status condor_history condor_wait condor_config_val
 condor_submit_dag condor_transfer_data condor_qedit condor_version"
SITE_COUNT=6

# The pool's first process, by number and by start time: a number alone may belong to another process by now.
process_start_time() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d ' ' -f 20; }

is_there() {
    local pid began
    read -r pid began 2> /dev/null < "$POOL_DIR/pid" || return 1
    [ -n "$began" ] && [ "$(process_start_time "$pid")" = "$began" ]
}

first_process() { cut -d ' ' -f 1 "$POOL_DIR/pid"; }

# A process that is just ending is there but has no program any more.
alive() { is_there && readlink "/proc/$(first_process)/exe" > /dev/null; }

wait_until_gone() {
    local tenths=$1
    while is_there; do
        [ "$tenths" -gt 0 ] || return 1
        tenths=$((tenths - 1))
        sleep 0.1
    done
}

inside() {  # COMMAND... in the running pool, in the same folder when that is under /tmp
    local folder=/
    case $PWD in /tmp | /tmp/*) folder=$PWD ;; esac
    nsenter --target "$(first_process)" --mount --pid --wdns="$folder" env -i \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin CONDOR_CONFIG="$POOL_DIR/etc/condor_config" LANG=C.UTF-8 HOME="${pool_home:-/root}" \
        TERM=dumb "$@"
}

free_port() {  # FIRST ; the next port on which nobody listens
    local port=$1
    while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
        port=$((port + 1))
        [ "$port" -lt $(($1 + 200)) ] || die "no free port between $1 and $port on 127.0.0.1"
    done
    printf '%s\n' "$port"
}

choose_ports() {  # the last ones again when they are free: addresses in the job queue stay true
    local base=$((16#$(printf '%s' "$POOL_DIR" | sha256sum | cut -c 1-4) % 6000 * 2 + 20000)) PORT='' HTTP_PORT=''
    # shellcheck disable=SC1091
    if [ -s "$POOL_DIR/etc/ports" ]; then . "$POOL_DIR/etc/ports"; fi
    PORT=$(free_port "${PORT:-$base}")
    HTTP_PORT=$(free_port "${HTTP_PORT:-$((PORT + 1))}")
    printf 'PORT=%s\nHTTP_PORT=%s\n' "$PORT" "$HTTP_PORT" > "$POOL_DIR/etc/ports"
}

fill_in() {  # TEMPLATE -> stdout
    local PORT HTTP_PORT
    # shellcheck disable=SC1091
    . "$POOL_DIR/etc/ports"
    sed "s#@POOL@#$POOL_DIR#g; s#@ROOTFS@#$ROOTFS#g; s#@PORT@#$PORT#g; s#@HTTP_PORT@#$HTTP_PORT#g" "$RECIPES/$1"
}

make_folders() {
    local condor site
    chmod 755 "$POOL_DIR"
    setpriv --reuid "$FERMI_UID" --regid "$FERMI_UID" --clear-groups test -x "$POOL_DIR" ||
        die "POOL_DIR=$POOL_DIR cannot be entered by ordinary users: a folder above it is closed"
    mkdir -p "$POOL_DIR"/{bin,etc/config.d,home/fermi,home/prod,http,log,sites,sps,state,work}
    ( umask 077; mkdir -p "$POOL_DIR"/etc/{passwords.d,tokens.d,usertokens}/ "$POOL_DIR/state/cred" )
    chmod 1777 "$POOL_DIR"/{work,sps}
    chown "$FERMI_UID:$FERMI_UID" "$POOL_DIR/home/fermi"
    chown "$PROD_UID:$PROD_UID" "$POOL_DIR/home/prod"
    condor=$(awk -F : '$1 == "condor" { print $3 ":" $4 }' "$ROOTFS/etc/passwd")
    mkdir -p "$POOL_DIR"/state/{spool,lock,run}
    chown "$condor" "$POOL_DIR/log" "$POOL_DIR"/state/{spool,lock,run}
    for site in a b c d e f; do
        mkdir -p "$POOL_DIR/nodes/$site"/{execute,cache,lscratch}
        chown "$condor" "$POOL_DIR/nodes/$site/execute"
        chmod 1777 "$POOL_DIR/nodes/$site"/{cache,lscratch}
    done
}

write_settings() {
    local conf=$ROOTFS/etc/apptainer/apptainer.conf client
    fill_in condor_config.in > "$POOL_DIR/etc/condor_config"
    fill_in nginx.conf.in > "$POOL_DIR/etc/nginx.conf"
    fill_in site-startd > "$POOL_DIR/etc/site-startd"
    fill_in client > "$POOL_DIR/bin/condor_client"
    chmod 755 "$POOL_DIR/etc/site-startd" "$POOL_DIR/bin/condor_client"
    for client in $CLIENTS; do ln -sf condor_client "$POOL_DIR/bin/$client"; done
    sed 's/^enable \(overlay\|underlay\) = .*/enable \1 = no/' "$conf" > "$POOL_DIR/etc/apptainer.siteb.conf"
    sed 's/^user bind control = .*/user bind control = no/' "$conf" > "$POOL_DIR/etc/apptainer.sitec.conf"
    mkdir -p "$POOL_DIR/etc/empty"
    [ -s "$POOL_DIR/etc/passwords.d/POOL" ] || ( umask 077; head -c 64 /dev/urandom > "$POOL_DIR/etc/passwords.d/POOL" )
}

# Hard links where the cache is on the same file system: replace a file of the stand-in CVMFS, never write into it.
place() {  # SOURCE TARGET
    [ ! -e "$2" ] || return 0
    rm -rf "$2.new"
    cp -al "$1" "$2.new" 2> /dev/null || { rm -rf "$2.new"; cp -a "$1" "$2.new"; }
    mv -T "$2.new" "$2"
}

place_files() {
    [ "$(cat "$POOL_DIR/etc/origin" 2> /dev/null)" = "$IMAGES $SOFTWARE" ] || rm -rf "$POOL_DIR/cvmfs" "$POOL_DIR/http/images"
    place "$IMAGES/cvmfs" "$POOL_DIR/cvmfs"
    place "$IMAGES/http/images" "$POOL_DIR/http/images"
    mkdir -p "$POOL_DIR/cvmfs/fermi.test/software"
    place "$SOFTWARE/lat-python" "$POOL_DIR/cvmfs/fermi.test/software/lat-python"
    ln -sfn light-1 "$POOL_DIR/cvmfs/fermi.test/images/light-latest"     # a tag that moves
    echo "$IMAGES $SOFTWARE" > "$POOL_DIR/etc/origin"
}

# The child that is number 1 in a process namespace of its own; shells have short-lived other children.
first_of_namespace() {  # PARENT
    local pid
    for pid in $(pgrep -P "$1"); do
        if grep -qs '^NSpid:.*[[:space:]]1$' "/proc/$pid/status"; then echo "$pid"; fi
    done
}

launch() {
    local outer pid=
    # shellcheck disable=SC2154
    setsid "$RECIPES/enter-rootfs" "$ROOTFS" "$POOL_DIR/cvmfs:/cvmfs:ro" "$POOL_DIR/home:/home" "$POOL_DIR/sps:/sps" \
        "$POOL_DIR/nodes/a/execute:/var/lib/condor/execute" -- \
        sh -c "install -d -o condor /run/condor && exec env CONDOR_CONFIG='$POOL_DIR/etc/condor_config' condor_master -f" \
        > "$POOL_DIR/log/start.out" 2>&1 {pool_lock}>&- &
    outer=$!
    for _ in $(seq 100); do
        pid=$(first_of_namespace "$outer")
        [ -z "$pid" ] || break
        sleep 0.05
    done
    [ -n "$pid" ] || explain_failure "the pool's first process ended at once"
    echo "$pid $(process_start_time "$pid")" > "$POOL_DIR/pid"
}

explain_failure() {  # REASON ; with the tail of the log that tells most
    local log
    say "$1"
    for log in "$POOL_DIR"/log/start.out $(grep -lE 'ERROR|FATAL|fatal:|exited with status|EXCEPT' "$POOL_DIR"/log/MasterLog \
        "$POOL_DIR"/log/*Log "$POOL_DIR"/log/http-error.log 2> /dev/null | awk '!seen[$0]++' | head -n 3); do
        [ -s "$log" ] || continue
        printf -- '--- the end of %s\n' "$log" >&2
        tail -n 12 "$log" >&2
    done
    end_processes
    exit 1
}

present() {  # how many of the pool's parts answer
    inside condor_status -any -af MyType 2> /dev/null | grep -cE '^(Scheduler|Slot|Machine|Negotiator)$'
}

wait_until_ready() {
    local deadline=$((SECONDS + ${POOL_START_LIMIT:-60})) found=0 want=$((SITE_COUNT + 2))
    until [ "$found" -ge "$want" ] && http_answers; do
        alive || explain_failure "the pool ended while it was starting"
        [ "$SECONDS" -lt "$deadline" ] ||
            explain_failure "after ${POOL_START_LIMIT:-60} s only $found of $want parts of the pool answer (POOL_START_LIMIT=seconds waits longer)"
        found=$(present) || true
        sleep 0.1
    done
}

http_answers() {
    local PORT HTTP_PORT
    # shellcheck disable=SC1091
    . "$POOL_DIR/etc/ports"
    (exec 3<> "/dev/tcp/127.0.0.1/$HTTP_PORT") 2> /dev/null
}

make_tokens() {
    local user folder
    for user in fermi prod; do
        folder=$POOL_DIR/etc/usertokens/$user
        [ ! -s "$folder/$user" ] || continue
        ( umask 077; mkdir -p "$folder"; inside condor_token_create -identity "$user@fermigrid.test" > "$folder/$user.new" ) ||
            explain_failure "no token could be made for $user"
        mv "$folder/$user.new" "$folder/$user"
    done
}

end_processes() {  # politely, then at once; the end of the first process is the end of all of them
    local pid
    if is_there; then
        pid=$(first_process)
        kill -QUIT "$pid" 2> /dev/null || true
        wait_until_gone 80 || kill -KILL "$pid" 2> /dev/null || true
        wait_until_gone 100 || die "process $pid of the pool does not end: it hangs in the kernel (ps -o stat,wchan $pid)"
    fi
    rm -f "$POOL_DIR/pid"
}
