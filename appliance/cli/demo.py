"""`appliance demo`: a real box over the sample documents, from nothing to answers with citations."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import ask
from appliance.cli.session import Session, command


def add_to(app):
    pass
