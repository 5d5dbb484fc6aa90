"""The quantizing process: `python -m appliance.infer.quantize`, told one JSON line on stdin, as `quantizer.py` says.

It reads a file that may be hostile by native code, so it is nobody's but its own process: what it does there, the
daemon outlives.
"""

import json
import os
import sys

from appliance.errors import ApplianceError
from appliance.infer import child, llama
from appliance.infer.protocol import EXIT_LOAD_FAILED


def main() -> None:
    """Run until done. Exits EXIT_LOAD_FAILED after saying why on stdout."""
    parent = os.getppid()
    report = child.take_stdout()
    child.harden(parent)
    told = json.loads(sys.stdin.readline())
    llama.init()
    try:
        llama.quantize(
            told["source"],
            told["target"],
            told["storage"],
            told["threads"],
            lambda done, total: child.say(report, {"done": done, "total": total}),
        )
    except ApplianceError as error:
        child.say(report, {"reason": error.reason, "message": str(error)})
        os._exit(EXIT_LOAD_FAILED)


if __name__ == "__main__":
    main()
