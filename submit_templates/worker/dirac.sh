# shellcheck shell=bash
# A job that DIRAC's JobWrapper started, on the host or in the container of its SingularityComputingElement.

dirac=_begin_dirac
reserved=222  # DIRAC would begin a job that ends with it again by itself

_begin_dirac() {  # one log; the watchdog told; and is this DIRAC's own container?
    exec 2>&1 4>&1  # the JobWrapper makes two files of the streams, and the order of their lines is lost
    _log "DIRAC's job ${JOBID:-unknown} at ${DIRACSITE:-an unnamed site}"
    # It kills jobs that use little of their CPU for half an hour: a long stage-in. The walltime is watched here
    true > DISABLE_WATCHDOG_CPU_WALLCLOCK_CHECK || :
    # What that computing element makes of a node: its script and HOME on /tmp, hardly any variables
    if [ "${HOME:-}" != /tmp ] || [ ! -e /tmp/dirac_container.sh ]; then return 0; fi
    APPTAINER_CONTAINER=${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-unnamed}}
    _log "DIRAC has started this container itself, from its site's ContainerRoot: $APPTAINER_CONTAINER"
    HOME=$scratch  # /tmp has the proxy and what is DIRAC's
}
