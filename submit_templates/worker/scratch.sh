# shellcheck shell=bash
# A job that does not work where it was started: in the site's scratch folder, or in one that all nodes share, to which a batch
# system brings it nothing. FERMIGRID_PLAN and FERMIGRID_BACK, of the submit file, say where its files are and its outputs go.

away=yes own='' back=''

_go_away() {  # -> scratch, the job's own folder, with its files in it
    local name file base plan=${FERMIGRID_PLAN:-$scratch} rows=shards/
    exec 2>&1 4>&1  # to a batch system these may be two openings of one file
    for name in SLURM_JOB_ID LSB_JOBID PBS_JOBID JOB_ID; do [ -z "${!name:-}" ] || _log "$name is ${!name}"; done
    _need "$TAME" "$shard_file" "shard file"
    back=${FERMIGRID_BACK:-$scratch}
    [ "$plan" != "$scratch" ] || rows=''
    base=$(exec sed -n 's/^scratch=//p' "$plan/job.env" 2> /dev/null) || [ -z "$rows" ] ||
        _finish "$STAGE_IN" "job.env cannot be read from $plan"
    if [ -n "$base" ]; then
        printf -v base '%b' "$base"
        own=$base/fermigrid-job.$HOSTNAME.$attempt
        _run 30 mkdir -m 700 -- "$own" || { own=''; _end_or_full "$INTERNAL" "no folder can be made in $base"; }
        scratch=$own
        _sweep_scratch
    fi
    if [ "$scratch" != "$plan" ]; then
        for file in "$plan"/{job.env,"$rows$shard_file",bundle.tar.gz,gathered,secrets/*} "$back/in/$job/gathered"; do  # what a batch lacks is missed where it is read
            [ ! -e "$file" ] || _run 600 cp -r -- "$file" "$scratch/" || _end_or_full "$STAGE_IN" "$file cannot be copied to $scratch"
        done
        [ -n "$rows" ] || ln -s -- "$plan"/* "$scratch/" 2> /dev/null || :  # HTCondor's own: secrets that it renews
    fi
    cd -- "$scratch"
    mkdir -p -- "$back/out" || _end_or_full "$STAGE_OUT" "$back/out cannot be made"
}

_sweep_scratch() {  # of this node's jobs that were killed; a living one holds a lock
    local folder fd
    exec {scratch_fd}< "$own"
    flock -n "$scratch_fd" 2> /dev/null || return 0
    while IFS= read -r folder; do
        { exec {fd}< "$folder"; } 2> /dev/null || continue
        ! flock -n "$fd" || rm -rf -- "$folder" || :
        exec {fd}<&-
    done < <(find "$base" -maxdepth 1 -name "fermigrid-job.$HOSTNAME.*" -mmin +1 2> /dev/null)
}

_bring_back() {  # what is in out/: outputs of a job that went well, core files of one that did not
    local limit kept=.core.
    [ "$exit_code" != 0 ] || kept=.
    [ "$scratch" != "$back" ] || return 0
    _get limit limit.stage_out 7200
    if _ask "$limit" _brought && [ ${#answer[@]} = 0 ] || [ "$exit_code" != 0 ]; then return 0; fi
    exit_code=$STAGE_OUT json_report='' message="no way for outputs to $back/out: ${answer[0]:-no end within $limit s}"
    _log "exit $exit_code: $message"
}

_brought() { find "$scratch/out" -type f -name "$job$kept*" -exec mv -t "$back/out" {} + 2>&1; }

_leave_scratch() { [ -z "$own" ] || [ -n "${FERMIGRID_KEEP:-}" ] || rm -rf -- "$own"; }
