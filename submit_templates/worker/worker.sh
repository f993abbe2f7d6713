#!/bin/bash -p
# The fermigrid worker: the program that runs on the node, around one job's payload.
#
#   worker.sh run JOB SHARDFILE ROW BATCH [DIGEST]     in a scratch folder with job.env, the shard file and the bundle
#
# It finds or starts the container, stages in, runs the payload, stages out, and ends its stdout with one line, the report,
# in every case. The contract is docs/architecture.md, the manual docs/reference/worker.md. bash 4.1 or later, coreutils, curl or wget.
#
# Read _main, _do_job and _on_exit here first: they are the whole flow. Then the part you need (* only in batches that need it):
#   base          time, the log, phases, ways out, signals, children: _run (polled, stdout passes) and _ask (answers, may hang)
#   describe      job.env and the job's row, checked: set_of, args, in_*, out_*
#   preamble *    the site's own lines before a runtime is looked for
#   container     where the worker is; the runtime and its command line; what to try when a container does not start
#   oci *         podman in a runtime's place
#   mounts        automounts woken, binds and software checked, broken CVMFS told from a payload's failure
#   image         the ladder of the image's sources; download *, fetch * (one file over HTTP), cache *, unpack *, registry *
#   dirac *       what DIRAC's JobWrapper and its own container need
#   scratch *     the site's scratch folder instead of the one that the job was started in; its files there, its outputs back
#   secrets *     copies for this job alone, the guard that removes them, how the payload finds them; secrets_sealed * opens,
#                 secrets_live * renews and knows ends, secrets_wallet * moves an Oracle wallet
#   stage_in      bundle and inputs; deadlines and tries, for stage-out too; adler32 *; gather * (outputs of steps before it)
#   payload       its environment, the launcher that proves the container, its signals and its end
#   messages *    start and end messages of the Fermi pipeline
#   inside *      order wrapper-inside: this file, started again in the container
#   stage_out     the outputs, to out/ or (stage_names *) to their names: stage_posix *, stage_remote *; core files
#   report        the JSON
#
# Time: `end_by` is the walltime's end, `kill_at` the end of the child that _await polls (a limit, or the grace time), `deadline`
# that of all files of a stage, or of one image; all in milliseconds of _now, 0 for none.
# Signals: at once, but in a stretch in which `critical` is not empty they wait for _calm, in phase payload they go to the payload
# (`pending`, of which `passed` are done), and once `finishing` they only get into the report.
# bash's scope is dynamic: a `local` is seen, and set, by all that is called from there. A function that runs another one by name
# (_run, _ask, _retry) has as few locals as it can.
#
# Conventions: functions that find something out leave it in a global variable named in their comment, because every $( )
# is a fork. `_finish CODE WORDS` is the only way out; the EXIT trap cleans and reports. Data of a person is never evaluated.
# shellcheck disable=SC2016  # the launcher's text has dollars of its own
set +o posix -Eeuo pipefail
export LC_ALL=C  # bytes are bytes, and tools speak the language that is matched below
unset LD_LIBRARY_PATH LD_PRELOAD BASH_ENV ENV CDPATH
host_path=${PATH:-/usr/local/bin:/usr/bin:/bin}
export PATH=$host_path:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin
shopt -u patsub_replacement 2> /dev/null || :  # bash 5.2: & in a replacement is a plain character

readonly BAD_JOB=80 NO_RUNTIME=81 NO_IMAGE=82 IMAGE_DAMAGED=83 NO_BIND=84 NO_SECRET=85 STAGE_IN=86 NO_OUTPUT=87 \
    STAGE_OUT=88 SCRATCH_FULL=89 EXPIRED=90 CVMFS_BROKEN=91 INTERNAL=99
readonly TAME='^[A-Za-z0-9][A-Za-z0-9._-]*$' VARIABLE='^[A-Za-z_][A-Za-z0-9_]*$' HEX64='^[0-9a-f]{64}$'
readonly KEY='^[a-z][a-z0-9_.]*$' NUMBER='^[0-9]{1,18}$'
readonly MARKER_FILE=/etc/fermigrid-image
readonly FREE_KB=1024  # less free space than this is "full"
readonly SUMMARY_KEYS=64 SUMMARY_BYTES=256 MESSAGE_BYTES=2000

# ==== what is known
job='' shard_file='' row_number='' batch=''  # the arguments
side=run  # run; inside: started again in the container by order wrapper-inside
declare -A set_of=()  # job.env: the keys that come once
image_paths=() image_urls=() runtimes=() runtime_options=() preamble=() message_via=() env_list=()
bind_from=() bind_to=() bind_mode=() bind_required=() bind_result=()
software=() software_from=() software_to=() software_path=() software_env=() software_env_of=()
secret=()
row_job='' row_run='' row_piece='' args=() row_env=()
in_name=() in_bytes=() in_adler=() in_sha=() in_source=() in_source_of=()
out_name=() out_to=() gathers=''

scratch='' work='' control='' view='' secret_view=''  # folders; `view`: work as the payload sees it
attempt='' start=1 begin=0 begin_ms=0 now_ms=0 phase=setup phase_ms=0
declare -A spent=([setup]=0 [secrets]=0 [image]=0 [stage_in]=0 [payload]=0 [stage_out]=0)
where=host container=none rehearsal=false runtime='' runtime_name='' runtime_version='' userns=null overlay=unknown version_fd='' oci='' oci_fd=''
image='' rung=none image_source='' image_bytes=0 image_seconds=0.0 cache_dir='' cache_fd='' lock_fd='' lock_link=''
secret_dir='' secret_fd='' guard_fd='' live='' said_fd=''
inner_runs='' away='' dirac='' scratch_fd='' messages='' tools='' start_fd='' user_ms=0 system_ms=0 started_payload=false payload_exit=null payload_signal=null signals=() ends='' pending=() passed=0
end_by=0 overtime=''  # the walltime's end in milliseconds, 0: none
exit_code='' message='' finishing='' critical='' deferred=''
payload_group='' child='' asked='' kill_at=0 pipe_fd='' ask_fd='' parts=()
json='' object='' json_tried='' json_inputs='' json_outputs='' json_cores='' json_image='' json_binds='' json_cvmfs='' json_report=''
summary_keys=() summary_values=()
answer=()

# ==== the flow
_main() {
    [ "${1:-}" != inside ] || _main_inside
    [[ ${1:-} == run && $# == [56] ]] || { printf 'usage: worker.sh run JOB SHARDFILE ROW BATCH [DIGEST]\n' >&2; exit 2; }
    job=$2 shard_file=$3 row_number=$4 batch=$5 scratch=$PWD
    begin=${EPOCHSECONDS:-}
    [ -n "$begin" ] || begin=$(date +%s)
    _now
    begin_ms=$now_ms phase_ms=$now_ms
    _set_traps
    _find_start
    $dirac
    [ -z "$away" ] || _go_away
    [ -z "$messages" ] || _read_messages
    _need "$TAME" "$job" "job"
    _need "$TAME" "$shard_file" "shard file"
    _need "$TAME" "$batch" "batch"
    _need '^[1-9][0-9]{0,8}$' "$row_number" "row"
    critical=.  # until it is known which secrets came with the job: they would stay
    _log "job $job, batch $batch, on $HOSTNAME in $scratch"
    _bindable "$scratch"
    _make_folders
    _parse_settings job.env
    [ ${#secret[@]} = 0 ] || _guard_secrets
    _calm
    attempt=g${set_of[generation]}.${attempt#*.}
    [ -z "${set_of[walltime]:-}" ] || end_by=$((begin_ms + set_of[walltime] * 1000))
    _check_digests "${6:-}"
    _parse_row "$shard_file" "$row_number"
    _find_where
    [ -z "$messages" ] || _send_start
    [ ${#secret[@]} = 0 ] || _stage_secrets
    _phase setup
    _make_container_ready
    _phase setup
    view=$work
    ! _starts_container || _get view container.workdir /srv
    [ ${#secret[@]} = 0 ] || _settle_secrets
    if _starts_container && [ "${set_of[order]:-}" = wrapper-inside ]; then _run_inner; fi
    _do_job
}

_do_job() {  # on the side of the container that the order says
    _unpack_bundle
    _stage_in
    [ -z "$gathers" ] || _gather
    _phase setup
    _payload_environment
    _write_launcher "${args[@]}"
    _run_payload
    _stage_out
    _finish 0 ""
}

_make_container_ready() {
    local found=no words
    if [ "$where" = image ]; then _use_this_container; return 0; fi
    [ ${#preamble[@]} = 0 ] || _run_preamble
    _find_runtime && found=yes
    if [ "$found" = no ]; then
        words="none of ${runtimes[*]-apptainer singularity} is on $HOSTNAME"
        [ "$where" = host ] || _finish "$NO_IMAGE" "in another image, and $words"
        [ "${set_of[rehearsal]:-}" = yes ] || _finish "$NO_RUNTIME" "no container runtime: $words"
        _rehearse "$words"
        return 0
    fi
    _phase image
    _climb_ladder
    if [ "$where" = other ] || [ "${set_of[rehearsal]:-}" = yes ]; then
        if ! _try_image; then
            [ "$where" = host ] || _finish "$NO_IMAGE" "in another image, and $runtime does not work in it: $words"
            _rehearse "$runtime does not work here: $words"
            return 0
        fi
    fi
    [ "$where" = host ] && container=worker || container=nested
    _wake_binds
}

_make_folders() {
    work=$scratch/work control=$scratch/work/.fermigrid
    mkdir -p -- "$scratch/out" "$control/home" "$control/tmp" "$control/secrets" "$control/scratch" ||
        _end_or_full "$INTERNAL" "folders cannot be made in $scratch"
}

_set_traps() {  # and keeps the true stdout and stderr for the end, which may come in the middle of a redirection
    exec 3>&1 4>&2 {pipe_fd}<> <(:)
    trap _on_exit EXIT
    trap '_on_error "$?" "${FUNCNAME[0]:-main}" "$LINENO"' ERR
    trap '_on_signal HUP 1' HUP
    trap '_on_signal INT 2' INT
    trap '_on_signal QUIT 3' QUIT
    trap '_on_signal TERM 15' TERM
    trap '_on_signal USR1 10' USR1
    trap '_on_signal USR2 12' USR2
    trap '_on_signal XCPU 24' XCPU
    trap '' PIPE
}

# The order: nothing of the payload runs on; unfinished outputs (their removal may need secrets); what the payload said, while its
# folder is there; secrets; the rest; messages; the report, last. Each step has a limit, because HTCondor loses patience.
_on_exit() {
    local status=$? group wait=0
    [ "$BASHPID" = "$$" ] || return 0
    trap - ERR EXIT
    set +Eeu
    finishing=yes
    exec 1>&3 2>&4
    IFS=$' \t\n'  # the end may come in the middle of a `read` that has another
    for group in HUP INT TERM QUIT USR1 USR2 XCPU PIPE; do trap '' "$group"; done
    if [ "$status:$exit_code" = 2: ]; then  # bash 5.2 cannot run a trap while it expands $( ) or <( ), and loses the signal's name
        signals+=(TERM) exit_code=143 message="ended by a signal, taken for TERM, in phase $phase"
    fi
    [ -n "$exit_code" ] || { exit_code=$INTERNAL message="internal error: the worker ended by itself with status $status"; }
    for group in "$payload_group" "$child" "$asked"; do
        [ -z "$group" ] || { disown "$group"; kill -KILL -- "-$group"; } 2> /dev/null
    done
    [ -z "$asked" ] || { exec {ask_fd}>&-; ask_fd=''; }  # its words may be in it
    if [ -z "$json_report" ]; then
        [ "$exit_code" = 0 ] || _log "exit $exit_code: $message"
        _wipe_parts
        case $started_payload:$exit_code in *:0 | *:"$SCRATCH_FULL") ;; true:*) _keep_cores ;; esac
        _read_summary
    fi
    [ "$away:$side" != yes:run ] || _bring_back
    [ -n "$json_report" ] || _describe
    if [ "$side" = inside ]; then
        printf '%s\n%s\n' "$exit_code $payload_exit $user_ms $system_ms ${spent[payload]}" "$json_report" > "$control/report.new" && mv -f -- "$control/report.new" "$control/report"
        exit "$exit_code"
    fi
    [ -z "$inner_runs" ] || _kill_inner
    [ ${#secret[@]} = 0 ] || _remove_secrets
    [ -z "$oci" ] || _remove_podman
    [ -z "$messages" ] || _read_pipeline
    [ -z "$lock_fd$lock_link" ] || _unlock_cache
    _ask 20 _clean
    [ -z "$messages" ] || _send_end
    case $exit_code in "$NO_RUNTIME" | "$NO_IMAGE" | "$CVMFS_BROKEN") _get wait backoff 0 ;; esac
    [ "$wait" = 0 ] || _log "then $wait s of waiting: a bad node must not take job after job"
    _print_report || { sleep 1; _print_report; }
    _back_off
    exit "$exit_code"
}

_clean() {  # before the report, so that a full disk has room for it; in a child, because a disk may hang
    [ -z "$away" ] || _leave_scratch
    [ -r "$scratch/job.env" ] || return 0  # no job's folder: what is in it is a person's
    [ "$exit_code" = 0 ] || find "$scratch/out" -mindepth 1 ! -name "$job.core.*.$attempt" -delete 2> /dev/null
    [ -n "${FERMIGRID_KEEP:-}" ] || rm -rf -- "$work" "$scratch/.image" "$scratch/.session" 2> /dev/null
}

_back_off() {  # a node that cannot do the job at all must not empty the queue
    [ "$wait" -gt 0 ] || return 0
    trap 'kill "$!"; exit "$exit_code"' HUP INT TERM QUIT
    sleep "$wait" > /dev/null 2>&1 3>&- 4>&- &
    wait "$!"
}

# ==== the parts
# Files beside this one. fermigrid puts their text in the place of these lines, without the parts that a batch does not
# need (worker.py), so that one file goes to the node.
# shellcheck source-path=SCRIPTDIR
here=${BASH_SOURCE[0]%/*}
. "$here/base.sh"
. "$here/describe.sh"
. "$here/preamble.sh"
. "$here/container.sh"
. "$here/oci.sh"
. "$here/mounts.sh"
. "$here/image.sh"
. "$here/download.sh"
. "$here/fetch.sh"
. "$here/cache.sh"
. "$here/unpack.sh"
. "$here/registry.sh"
. "$here/scratch.sh"
. "$here/dirac.sh"
. "$here/secrets.sh"
. "$here/secrets_sealed.sh"
. "$here/secrets_live.sh"
. "$here/secrets_wallet.sh"
. "$here/stage_in.sh"
. "$here/adler32.sh"
. "$here/gather.sh"
. "$here/payload.sh"
. "$here/messages.sh"
. "$here/inside.sh"
. "$here/stage_out.sh"
. "$here/stage_names.sh"
. "$here/stage_posix.sh"
. "$here/stage_remote.sh"
. "$here/report.sh"

if [ "${BASH_SOURCE[0]}" = "$0" ]; then _main "$@"; fi
