"""A collection out of this box as one file, and into a box from one."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import ArchiveRefused, InvalidArgument, StoreDamaged
from appliance.knowledge.library import Library
from appliance.knowledge.storage import durable
from appliance.knowledge.transfer.archive import ArchiveReader, ArchiveWriter
from appliance.knowledge.transfer.content import ContentReader, ContentWriter, Header
from appliance.ports import Keyring, Progress
from appliance.types import PassphraseCost
