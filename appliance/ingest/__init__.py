"""Documents from outside into collections: sources, quarantine, pipeline; the parsers under extract/ run only in locked children."""
