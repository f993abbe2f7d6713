"""What DIRAC cannot carry or do, of a site and of a campaign at it, with the line in each file. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fermigrid.advance import parts_of
from fermigrid.campaign import Step
from fermigrid.config import Key, Source
from fermigrid.dirac_site import Dirac
from fermigrid.errors import Problem, Unrepresentable
from fermigrid.jdl_text import JOB_NAME, PRIORITIES, cpu_time_of, encode_lfn
from fermigrid.placeholder import compile_text
from fermigrid.plan import Assembled, constants_of, job_name, jobs_of, lfn_of, variables_of
from fermigrid.rates import Spot, scopes_of
from fermigrid.site import Site, Staging
from fermigrid.split import chosen_pieces, count_jobs

SANDBOX_OWN = frozenset(  # names in the job's folder that are DIRAC's
    ("std.out", "std.err", "job.info", "pilot.cfg", "retcode", "DISABLE_WATCHDOG_CPU_WALLCLOCK_CHECK")
)
_JOB_OWN = frozenset(("worker.sh", "job.env", "bundle.tar.gz", "gathered", "out", "work"))  # that are the job's
SANDBOX_BYTES = 100 * 2**20  # the most that DiracX takes as a sandbox
INPUT_DATA = 500  # DIRAC takes fewer logical file names of one job than these


def find_dirac_problems(site: Site, source: Source) -> Iterator[Problem]:
    """What contradicts itself in a site that has to do with DIRAC."""
    if site.backend != "dirac":
        if site.dirac is not None:
            yield source.problem(("dirac",), f"is for backend: dirac; this site is backend: {site.backend}")
        return
    if site.dirac is None:
        yield source.problem(("backend",), "backend: dirac needs a section dirac: url, vo, group")
        return
    if site.container.launch == "site":
        text = "nothing in DIRAC's JDL asks for a container: launch: worker, which finds out if DIRAC has started one"
        yield source.problem(("container", "launch"), text)
    if site.htcondor.grid:
        yield source.problem(("htcondor", "grid"), "is for backend: htcondor; this site is backend: dirac")
    if site.dirac.output_se and site.output.kind != "transfer":
        text = f"is for outputs that come back (output: {{kind: transfer}}), and not for kind: {site.output.kind}"
        yield source.problem(("dirac", "output_se"), text)
    if site.staging.cores not in (0, Staging().cores):
        text = "core files do not come back from DIRAC: its output sandbox would be too large for the log, too"
        yield source.problem(("staging", "cores"), f"{text}; leave it out")


def find_dirac_misfits(a: Assembled, site: Site) -> Iterator[Problem]:
    """What of a campaign DIRAC has no room for at this site; and what only DIRAC has, at other sites."""
    yield from _only_of_dirac(a, site)
    if site.backend != "dirac" or site.dirac is None:
        return
    if (priority := a.campaign.accounting.priority) and priority not in PRIORITIES:
        text = f"{priority} is no priority of DIRAC (site {site.site!r}): 1 to {PRIORITIES[-1]}, or none"
        yield a.source.problem(("accounting", "priority"), text)
    yield from _code(a, site, site.dirac)
    yield from (a.source.problem(("block",), text) for text in limits_too_small(a, site))
    for name, step in a.campaign.steps.items():
        yield from _resources(a, site, site.dirac, name, step)
        yield from _names(a, site, name, step)
        yield from _lfns(a, site, site.dirac, name, step)


def _code(a: Assembled, site: Site, dirac: Dirac) -> Iterator[Problem]:
    """Code that is too large for a sandbox, or that would take the place of the job's own files."""
    if a.bundle is None:
        return
    if len(a.bundle.data) > SANDBOX_BYTES:
        text = f"the code is {len(a.bundle.data)} bytes as a bundle, and a sandbox of DIRAC has {SANDBOX_BYTES} at most"
        yield a.source.problem(("code",), f"{text} (site {site.site!r})")
    # an archive that a command hands in is unpacked by DIRAC's JobWrapper, over what is there
    if dirac.transport == "commands" and (
        taken := sorted({name.partition("/")[0] for name in a.bundle.names} & (SANDBOX_OWN | _JOB_OWN))
    ):
        text = (
            f"{taken[0]} is a name of the job's own, and DIRAC (site {site.site!r}) would put the code's in its place"
        )
        yield a.source.problem(("code",), f"{text}: rename it, or put it into a folder")


def limits_too_small(a: Assembled, site: Site) -> Iterator[str]:
    """The limits that a batch at a site of DIRAC is too large for, in words: it is given all jobs of one together."""
    scopes = [scope for scope in scopes_of(a.campaign.limits, {site.site: site}) if scope.running is not None]
    parts = list(parts_of(a.campaign, a.runs, a.trial)) if scopes else []
    for name, step in a.campaign.steps.items():
        jobs = max((count_jobs(step, part) for part in parts), default=0)
        for scope in scopes:
            if scope.has(Spot(name, site.site)) and scope.running is not None and scope.running < jobs:
                why = f"step {name} has {jobs} jobs in a block, and DIRAC (site {site.site!r}) is given them together"
                yield f"{scope.key}.running is {scope.running}; {why}: fewer runs in a block, or a higher limit"


def _only_of_dirac(a: Assembled, site: Site) -> Iterator[Problem]:
    if site.backend == "dirac":
        return
    for name, step in a.campaign.steps.items():
        for local, places in step.inputs.items():
            if all(place.startswith("LFN:") for place in places):
                text = f"{places[0]!r} is of DIRAC's file catalogue, which site {site.site!r} cannot ask"
                yield a.source.problem(("steps", name, "inputs", local), f"{text}: add another place for it")


def _resources(a: Assembled, site: Site, dirac: Dirac, name: str, step: Step) -> Iterator[Problem]:
    place = a.site_sources[site.site].place
    cpu_time = cpu_time_of(step.resources, dirac)
    if cpu_time > dirac.max_cpu_time:
        text = (
            f"{step.resources.walltime} s x {dirac.cpu_time_factor:g} (cpu_time_factor) = {cpu_time}: more CPUTime "
            f"than the {dirac.max_cpu_time} that DIRAC takes at site {site.site!r} ({place(('dirac', 'max_cpu_time'))})"
        )
        yield a.source.problem(("steps", name, "resources", "walltime"), text)


def _names(a: Assembled, site: Site, name: str, step: Step) -> Iterator[Problem]:
    """Names of jobs that DIRAC's table would cut; those of a run differ only in the piece, whose name is short."""
    run = max(a.runs, key=lambda run: len(run.name))
    piece = max((piece.name for piece in chosen_pieces(step, run, {})), key=len, default="")
    longest = job_name(name, run.name, piece)
    if len(longest) > JOB_NAME:
        text = f"its job {longest} has a name of {len(longest)} characters, and DIRAC keeps {JOB_NAME}"
        yield a.source.problem(("steps", name), f"{text} (site {site.site!r}): use shorter names of steps and runs")


def _lfns(a: Assembled, site: Site, dirac: Dirac, name: str, step: Step) -> Iterator[Problem]:
    """Logical file names that DIRAC cannot carry, refuses, or would bring under names that are taken."""
    key: Key = ("steps", name, "inputs")
    written = {local: lfn for local, places in step.inputs.items() if (lfn := lfn_of(places))}
    if len(written) >= INPUT_DATA:
        text = (
            f"{len(written)} logical file names for one job; DIRAC (site {site.site!r}) takes fewer than {INPUT_DATA}"
        )
        yield a.source.problem(key, text)
    for local, places in step.inputs.items():
        if sum(place.startswith("LFN:") for place in places) > 1:
            text = "two logical file names: DIRAC brings all that it is told, and takes them for two files"
            yield a.source.problem((*key, local), text)
    constants, variables = constants_of(a.campaign, name, site.site), variables_of(step, a.runs[0])
    forms = {local: compile_text(text, constants, variables) for local, text in written.items()}
    bad = set[str]()
    for values in jobs_of(name, step, a.runs) if forms else ():
        taken: dict[str, str] = {}
        for local, form in forms.items():
            if local not in bad and (why := _bad_lfn(form.format_map(values), values, dirac, taken)):
                bad.add(local)
                yield a.source.problem((*key, local), f"{why} (site {site.site!r})")
        if len(bad) == len(forms):
            return


def _bad_lfn(lfn: str, values: Mapping[str, str], dirac: Dirac, taken: dict[str, str]) -> str:
    job, base = values["job"], lfn.rpartition("/")[2]
    try:
        encode_lfn(lfn, f"{job}: logical file name")
    except Unrepresentable as error:
        return str(error)
    if not lfn.startswith(f"LFN:/{dirac.vo}/"):
        return f"{job}: {lfn} is not of the virtual organization: it must begin with LFN:/{dirac.vo}/"
    if base in SANDBOX_OWN | _JOB_OWN:
        return f"{job}: {lfn} would be brought as {base}, which is a name of the job's own"
    if other := taken.get(base):
        return f"{job}: {other} and {lfn} would both be brought as {base}"
    taken[base] = lfn
    return ""
