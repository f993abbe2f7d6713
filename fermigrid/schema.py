"""The tables of the ledger. A change is a new script at the end: never a change of one that people have used."""

from __future__ import annotations

GENERATIONS = 5  # the migration that brought them
MIGRATIONS = (
    """
    CREATE TABLE campaign (            -- one row
        name TEXT NOT NULL,
        instance TEXT NOT NULL,        -- random: the same campaign in another run folder is another one
        digest TEXT NOT NULL,          -- of all that was asked for: file, parameters, site
        site TEXT,                     -- --site of the command line, or NULL
        parameters TEXT NOT NULL,      -- --set of the command line, JSON object
        folder TEXT NOT NULL,          -- where relative paths of the campaign file start
        search TEXT NOT NULL,          -- folders of site files, JSON list
        created TEXT NOT NULL,
        version TEXT NOT NULL,         -- of fermigrid
        stopped TEXT                   -- when a person removed all of it: nothing more is submitted
    ) STRICT;
    CREATE TABLE batch (
        id TEXT PRIMARY KEY,           -- uuid5(instance, plan digest, step, site, generation), 32 hex digits
        block TEXT NOT NULL,
        step TEXT NOT NULL,
        generation INTEGER NOT NULL,
        site TEXT NOT NULL,
        backend TEXT NOT NULL,
        name TEXT NOT NULL,            -- for people: P400.b0000.clump.g0
        digest TEXT NOT NULL,          -- of the plan: sha256 of plan.json
        jobs INTEGER NOT NULL,
        options TEXT NOT NULL,         -- the backend's settings from the site file, JSON object
        intended TEXT NOT NULL,        -- when it was decided; after this instant it may be in the queue
        submitted TEXT,                -- when the batch system was known to have it; NULL: in doubt
        place TEXT,                    -- schedd, or empty
        cluster INTEGER,
        removed TEXT,                  -- when a person removed all that is left of it
        UNIQUE (block, step, generation)
    ) STRICT;
    CREATE TABLE job (                 -- a row only once something happened to the job
        batch TEXT NOT NULL REFERENCES batch,
        idx INTEGER NOT NULL,          -- line of items.txt, from 0
        name TEXT NOT NULL,
        state TEXT NOT NULL,           -- states.State
        since TEXT NOT NULL,
        starts INTEGER NOT NULL,
        host TEXT NOT NULL,
        reason TEXT NOT NULL,          -- of a hold, an eviction, a failure, in words
        code TEXT NOT NULL,            -- hold code/subcode, or the worker's exit code
        PRIMARY KEY (batch, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX job_state ON job (state, batch);
    CREATE INDEX job_name ON job (name);
    CREATE TABLE attempt (             -- one row for each report that came back
        job TEXT NOT NULL,
        attempt TEXT NOT NULL,
        batch TEXT NOT NULL REFERENCES batch,
        idx INTEGER NOT NULL,
        exit INTEGER NOT NULL,         -- 0: good
        rehearsal INTEGER NOT NULL,    -- 1: without a container
        accepted INTEGER NOT NULL,     -- 1 for exactly one attempt of a job: the index below holds it
        published INTEGER NOT NULL,    -- 1 once its outputs have their final names
        report TEXT NOT NULL,          -- JSON, as the worker wrote it
        PRIMARY KEY (job, attempt)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX accepted_once ON attempt (job) WHERE accepted = 1;
    CREATE INDEX rehearsed ON attempt (job) WHERE rehearsal = 1;
    CREATE INDEX unpublished ON attempt (published) WHERE published = 0;
    CREATE TABLE cursor (              -- how far each event log was read
        file TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE journal (             -- who did what, when: the campaign's history
        time TEXT NOT NULL,
        who TEXT NOT NULL,
        what TEXT NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE message (             -- start and end messages that a node did not send for certain
        id TEXT PRIMARY KEY,           -- its Message-ID, without brackets
        batch TEXT NOT NULL REFERENCES batch,
        job TEXT NOT NULL,
        kind TEXT NOT NULL,            -- start or end
        doubt INTEGER NOT NULL,        -- 1: it may have arrived
        text TEXT NOT NULL,            -- headers and body
        due INTEGER,                   -- not to be sent before, seconds since 1970; NULL: not looked at yet
        reason TEXT NOT NULL,          -- why the last try here failed
        sent TEXT                      -- when
    ) STRICT;
    CREATE INDEX unsent ON message (sent) WHERE sent IS NULL;
    """,
    """
    CREATE TABLE node_failure (        -- starts that ended with an exit code that charges the machine
        host TEXT NOT NULL,
        code INTEGER NOT NULL,         -- the worker's exit code
        times INTEGER NOT NULL,
        PRIMARY KEY (host, code)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE campaign ADD COLUMN team TEXT;   -- the group that the run folder is shared with; NULL: private
    """,
    """
    CREATE TABLE decision (            -- what is done again, and who wanted it
        id INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        who TEXT NOT NULL,             -- user@host; for what the campaign itself says: its key
        kind TEXT NOT NULL,            -- retry, rollback or rule
        why TEXT NOT NULL,             -- what was asked for, in words
        finished TEXT                  -- when its jobs had left the queue and their outputs were out of the way
    ) STRICT;
    CREATE TABLE override (            -- what replaces the campaign's parameters and version
        step TEXT NOT NULL,
        run TEXT NOT NULL,
        parameters TEXT NOT NULL,      -- JSON object
        decision INTEGER NOT NULL REFERENCES decision,
        PRIMARY KEY (step, run)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE batch ADD COLUMN runs TEXT;      -- the runs that it does, JSON list; NULL: all of its block
    ALTER TABLE batch ADD COLUMN pieces TEXT NOT NULL DEFAULT '{}';      -- run -> its pieces; a run not here is whole
    ALTER TABLE batch ADD COLUMN parameters TEXT NOT NULL DEFAULT '{}';  -- what replaces the campaign's in it
    ALTER TABLE job ADD COLUMN retired INTEGER REFERENCES decision;      -- it does not count any more: it is done again
    ALTER TABLE job ADD COLUMN successor TEXT;   -- the batch that does it again; NULL: that is still to be sent
    ALTER TABLE attempt ADD COLUMN retired INTEGER REFERENCES decision;
    CREATE INDEX job_retired ON job (batch, state) WHERE retired IS NOT NULL;
    CREATE INDEX job_again ON job (batch) WHERE retired IS NOT NULL AND successor IS NULL;
    CREATE INDEX attempt_retired ON attempt (retired) WHERE retired IS NOT NULL;
    DROP INDEX accepted_once;
    CREATE UNIQUE INDEX accepted_once ON attempt (job) WHERE accepted = 1 AND retired IS NULL;
    """,
    """
    CREATE TABLE watching (            -- one row once `watch` has looked
        id INTEGER PRIMARY KEY CHECK (id = 1),
        looked TEXT NOT NULL,          -- when it looked last
        changed TEXT NOT NULL,         -- when it last saw something happen
        asked TEXT,                    -- when every batch system was last asked whether it answers
        silent TEXT,                   -- since when one does not; NULL: all do
        why TEXT NOT NULL              -- what was said then
    ) STRICT;
    CREATE TABLE trial (               -- the runs of the trial: they are the first block, in this order
        place INTEGER PRIMARY KEY,
        run TEXT NOT NULL
    ) STRICT;
    CREATE TABLE halt (                -- why nothing more is sent, until a person says `fermigrid resume`
        kind TEXT PRIMARY KEY,         -- breaker, trial or space
        since TEXT NOT NULL,
        why TEXT NOT NULL              -- in words
    ) STRICT;
    CREATE TABLE paused (              -- batches whose waiting jobs were kept from starting
        batch TEXT PRIMARY KEY REFERENCES batch
    ) STRICT;
    CREATE TABLE result (              -- the last jobs that ended, for the circuit breaker
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        failed INTEGER NOT NULL,
        rung TEXT NOT NULL             -- what served the image; empty without a report
    ) STRICT;
    CREATE TABLE produced (            -- what the good jobs of a batch published
        batch TEXT PRIMARY KEY REFERENCES batch,
        jobs INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE adjusted (            -- what a person changed of the campaign and its sites after the submission
        subject TEXT NOT NULL,         -- a step, or a site
        name TEXT NOT NULL,            -- memory, disk, walltime; quota
        value INTEGER NOT NULL,        -- bytes, seconds
        PRIMARY KEY (subject, name)
    ) STRICT;
    CREATE TABLE alert (               -- what a person was told by which route
        kind TEXT NOT NULL,
        about TEXT NOT NULL,
        route TEXT NOT NULL,           -- mail or webhook
        tried INTEGER NOT NULL,        -- seconds since 1970
        told INTEGER NOT NULL,         -- 1: it took the message; 0: it did not
        PRIMARY KEY (kind, about, route)
    ) STRICT;
    """,
    """
    CREATE TABLE pace (                -- jobs that came to their end, of the last two days before the last of them
        minute TEXT NOT NULL,          -- in which they ended, UTC: 2027-03-04T05:06
        step TEXT NOT NULL,
        site TEXT NOT NULL,
        good INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        PRIMARY KEY (minute, step, site)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE setting (             -- what a person set while the campaign goes on
        key TEXT PRIMARY KEY,          -- limits.running, limits.steps.clump.starts, sites.slac, drain.slac, priority
        value TEXT NOT NULL,
        since TEXT NOT NULL,
        who TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE reweighed (           -- the blocks that had begun when the sites' weights were last changed
        block TEXT PRIMARY KEY
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE allowed (             -- what the batch systems were last told that a batch may do
        batch TEXT PRIMARY KEY REFERENCES batch,
        told TEXT NOT NULL,            -- JSON object
        bound INTEGER NOT NULL,        -- so many of its jobs were in the queue at most,
        left INTEGER NOT NULL          -- when so many had not ended
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE begun (               -- starts of the last ten minutes before the last of them
        batch TEXT NOT NULL,
        time INTEGER NOT NULL,         -- seconds since 1970
        times INTEGER NOT NULL,
        PRIMARY KEY (batch, time)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE growth (              -- how far a limit on starts has let its batches grow
        scope TEXT PRIMARY KEY,        -- limits, limits.steps.clump, limits.sites.slac
        high INTEGER NOT NULL,         -- places in the queue
        more REAL NOT NULL,            -- that may be added
        time REAL NOT NULL             -- seconds since 1970
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE job ADD COLUMN ruled INTEGER NOT NULL DEFAULT 0;    -- 1: it is decided what becomes of its end
    UPDATE job SET ruled = 1 WHERE state IN ('failed', 'removed');
    CREATE INDEX job_unruled ON job (batch, idx)
        WHERE ruled = 0 AND state IN ('failed', 'removed', 'held') AND retired IS NULL;
    CREATE TABLE tried (               -- how often a job was begun again by a rule since a person last wanted it
        job TEXT PRIMARY KEY,
        times INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE care (                -- what the next batches of a step of a run need, by rules
        step TEXT NOT NULL,
        run TEXT NOT NULL,
        memory INTEGER,                -- bytes; NULL: what the step asks for
        site TEXT,                     -- NULL: that of its block
        PRIMARY KEY (step, run)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE asked (               -- jobs that left the queue and wait for a person; they are held
        batch TEXT NOT NULL REFERENCES batch,
        idx INTEGER NOT NULL,
        since TEXT NOT NULL,
        why TEXT NOT NULL,             -- in words
        PRIMARY KEY (batch, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE stuck (               -- jobs that run and do nothing
        batch TEXT NOT NULL REFERENCES batch,
        idx INTEGER NOT NULL,
        why TEXT NOT NULL,             -- in words
        PRIMARY KEY (batch, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE stuck_look (          -- one row once it was looked for them
        id INTEGER PRIMARY KEY CHECK (id = 1),
        looked TEXT NOT NULL
    ) STRICT;
    CREATE TABLE node_good (           -- good jobs of the last day, by node and hour (2027-03-04T05, UTC)
        hour TEXT NOT NULL,
        site TEXT NOT NULL,
        node TEXT NOT NULL,
        times INTEGER NOT NULL,
        PRIMARY KEY (hour, site, node)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE node_bad (            -- starts of the last day that a node failed
        time TEXT NOT NULL,
        site TEXT NOT NULL,
        node TEXT NOT NULL
    ) STRICT;
    CREATE INDEX node_bad_time ON node_bad (time);
    CREATE TABLE banned (              -- nodes that get no more jobs
        site TEXT NOT NULL,
        node TEXT NOT NULL,            -- as HTCondor names it: what stands behind the @ of its slots' names
        why TEXT NOT NULL,
        since TEXT NOT NULL,
        who TEXT NOT NULL,
        PRIMARY KEY (site, node)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE node_banned (         -- when a node was last banned for its failures
        site TEXT NOT NULL,
        node TEXT NOT NULL,
        time TEXT NOT NULL,
        PRIMARY KEY (site, node)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE watch_job (           -- one row once a schedd was given a job that watches
        id INTEGER PRIMARY KEY CHECK (id = 1),
        place TEXT NOT NULL,           -- the schedd
        cluster INTEGER NOT NULL,
        since TEXT NOT NULL,           -- when it was sent, or was first known of
        ended TEXT                     -- when it found nothing left to wait for, or was removed with the campaign
    ) STRICT;
    """,
    """
    ALTER TABLE watching ADD COLUMN cared TEXT;  -- when the batch systems were asked and people told, if need be
    CREATE TABLE withheld (            -- what a person held or removed before it was sent
        step TEXT NOT NULL,
        run TEXT NOT NULL,
        kind TEXT NOT NULL,            -- held, removed
        since TEXT NOT NULL,
        who TEXT NOT NULL,
        PRIMARY KEY (step, run)
    ) STRICT, WITHOUT ROWID;
    """,
)
