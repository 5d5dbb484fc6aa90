"""Documents from outside into collections. The parsers under extract/ run only in locked children."""
