"""Language models in worker processes: the daemon's side (router, supervisor) and the worker's (the rest)."""
