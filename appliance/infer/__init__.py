"""Language models in worker processes: the daemon's side (router, supervisor, pointer) and the worker's (the rest)."""
