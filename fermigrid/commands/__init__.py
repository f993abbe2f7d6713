"""One thin file a verb: parse options, call the core, print."""
