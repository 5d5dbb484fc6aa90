"""Names that lead to models by weight: canary and A/B by draw, shadows on the side, promotion and rollback.

    set ──► targets A:9 B:1 ──┬─ promote B ──────────► B:1
                              ├─ B fails more than A ► A:9 B:0, by itself, with a finding
                              └─ rollback ───────────► what was before

The first target is the stable one; the others are measured against it. What was before each change that someone made
is kept, so that rolling back twice goes two changes back; targets that the rule demoted are not, for going back to them
would bring the failing model back. Counts live as long as the process; targets and their history are on disk.
"""

import random
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from appliance.errors import AlreadyExists, InvalidArgument, NotFound
from appliance.models.signed import SignedFile
from appliance.ports import Count, Keyring, ModelFiles
from appliance.types import Alias, ModelFile, ModelKind, Tally, Target

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
MAX_ALIASES, MAX_TARGETS, MAX_WEIGHT, KEPT_CHANGES = 1000, 16, 1000, 20
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rule:
    """When a canary loses its weight: it failed more often than the stable target by `margin_ratio` of its requests.

    Judged over the last `window_requests` of each target, and not before the canary had `least_requests`.
    """

    least_requests: int = 20
    window_requests: int = 200
    margin_ratio: float = 0.1


@dataclass(frozen=True, slots=True)
class Seen:
    """A target and its last requests."""

    target: Target
    requests: int
    errors: int

    @property
    def error_ratio(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """Targets, and how they came about."""

    targets: tuple[Target, ...]
    detail: str
    time: datetime
    by_rule: bool = False


@dataclass(slots=True)
class _Counted:
    """What became of one target's requests: all, and the last ones' errors."""

    last: deque[bool]
    total: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class _Entry:
    """The present targets, what was before (latest last), and counts of the present."""

    now: Change
    before: tuple[Change, ...]
    counted: dict[str, _Counted] = field(default_factory=dict)


def failing(seen: Sequence[Seen], rule: Rule) -> Seen | None:
    """The canary that must take no more requests, the worst if several; None where none fails. seen[0] is stable."""
    stable, *canaries = seen
    worst = max(
        (
            one
            for one in canaries
            if one.target.weight and not one.target.shadow and one.requests >= rule.least_requests
        ),
        key=lambda one: one.error_ratio,
        default=None,
    )
    return worst if worst and worst.error_ratio > stable.error_ratio + rule.margin_ratio else None


def without(targets: Sequence[Target], model: str) -> tuple[Target, ...]:
    """The targets with one at weight 0; the stable one takes all where nobody is left."""
    left = tuple(replace(target, weight=0) if target.model == model else target for target in targets)
    if any(target.weight and not target.shadow for target in left):
        return left
    return (replace(left[0], weight=1), *left[1:])


def draw(targets: Sequence[Target], at: float) -> str:
    """The model at a place in [0, 1) of the weights laid end to end."""
    shares = [(target.model, target.weight) for target in targets if target.weight and not target.shadow]
    place = at * sum(weight for _, weight in shares)
    for model, weight in shares:
        if place < weight:
            return model
        place -= weight
    return shares[-1][0]


class AliasBook:
    """`ports.Aliases`, and their administration. Belongs to one event loop; changes wait for the disk."""

    def __init__(
        self,
        path: Path,
        keyring: Keyring,
        files: ModelFiles,
        rule: Rule = Rule(),
        random: Callable[[], float] = random.random,
    ) -> None:
        """random: a place in [0, 1) for each request. Raises StoreDamaged."""
        self._file = SignedFile(path, keyring, "aliases", "model aliases 1")
        self._files, self._rule, self._random = files, rule, random
        self._entries = self._read()

    # --- what routes ---

    def choose(self, name: str) -> str:
        entry = self._entries.get(name)
        return draw(entry.now.targets, self._random()) if entry else ""

    def shadows(self, name: str) -> tuple[str, ...]:
        entry = self._entries.get(name)
        return tuple(target.model for target in entry.now.targets if target.shadow) if entry else ()

    def counter(self, name: str) -> Count:
        begun = self._entries.get(name)

        def count(model: str, outcome: Tally) -> None:
            entry = self._entries.get(name)
            if entry is not None and begun is not None and entry.counted is begun.counted:
                self._count(name, entry, model, outcome)

        return count

    def _count(self, name: str, entry: _Entry, model: str, outcome: Tally) -> None:
        if all(target.model != model for target in entry.now.targets):
            return  # the targets were set between the choice of the model and its start
        counted = entry.counted.setdefault(model, _Counted(deque(maxlen=self._rule.window_requests)))
        counted.last.append(outcome.errors > 0)
        counted.total = _sum(counted.total, outcome)
        seen = [self._seen(entry, target) for target in entry.now.targets]
        if outcome.errors and (worst := failing(seen, self._rule)):
            self._demote(name, entry, worst, seen[0])

    def demoted(self) -> Mapping[str, str]:
        """Aliases whose canary lost its weight by the rule and of which nobody took notice yet: why, by name."""
        return {name: entry.now.detail for name, entry in self._entries.items() if entry.now.by_rule}

    def __contains__(self, name: str) -> bool:
        """Safe from any thread."""
        return name in self._entries

    # --- what administers ---

    def list(self) -> tuple[Alias, ...]:
        return tuple(self._describe(name) for name in sorted(self._entries))

    def get(self, name: str) -> Alias:
        """Raises NotFound."""
        self._entry(name)
        return self._describe(name)

    def set(self, name: str, targets: Sequence[Target]) -> Alias:
        """Raises InvalidArgument; NotFound for a target that is not here; AlreadyExists where a model is called so."""
        if not NAME.fullmatch(name):
            raise InvalidArgument.of("name", "must be small letters, digits, dots and dashes, such as assistant.")
        if any(file.name == name for file in self._files.list()):
            raise AlreadyExists(f"There is a model models/{name}; an alias needs a name of its own.")
        if name not in self._entries and len(self._entries) >= MAX_ALIASES:
            raise InvalidArgument.of("name", f"there are {MAX_ALIASES} aliases already.")
        self._check(targets)
        return self._change(name, Change(tuple(targets), "set", datetime.now(UTC)))

    def promote(self, name: str, model: str) -> Alias:
        """One of the targets becomes the only one. Raises NotFound, InvalidArgument."""
        if all(target.model != model for target in self._entry(name).now.targets):
            raise InvalidArgument.of("model", f"models/{model} is no target of the alias {name}.")
        return self._change(name, Change((Target(model),), f"{model} promoted", datetime.now(UTC)))

    def rollback(self, name: str) -> Alias:
        """The latest earlier targets whose models are all still here. Raises NotFound, InvalidArgument."""
        entry = self._entry(name)
        older = list(entry.before)
        while older:
            last = older.pop()
            if self._may_lead_to(last.targets):
                back = replace(last, detail="rolled back", time=datetime.now(UTC), by_rule=False)
                return self._put(name, _Entry(back, tuple(older)))
        raise InvalidArgument.of("name", f"the alias {name} has nothing to roll back to.")

    def delete(self, name: str) -> None:
        """Raises NotFound."""
        self._entry(name)
        self._write({key: entry for key, entry in self._entries.items() if key != name})
        log.info("alias.deleted", alias=name)

    def using(self, model: str) -> tuple[str, ...]:
        """The aliases that lead to a model."""
        return tuple(
            sorted(n for n, entry in self._entries.items() if any(t.model == model for t in entry.now.targets))
        )

    def _check(self, targets: Sequence[Target]) -> None:
        if not 0 < len(targets) <= MAX_TARGETS or len({target.model for target in targets}) != len(targets):
            raise InvalidArgument.of("targets", f"takes 1 to {MAX_TARGETS} models, each once.")
        if not all(0 <= target.weight <= MAX_WEIGHT for target in targets):
            raise InvalidArgument.of("targets", f"weights must be from 0 to {MAX_WEIGHT}.")
        if targets[0].shadow or not any(target.weight for target in targets if not target.shadow):
            raise InvalidArgument.of("targets", "the first must be no shadow, and one must have a weight.")
        scaffolds = [self._scaffold(target.model) for target in targets]
        if any(target.shadow for target in targets) and len(set(scaffolds)) > 1:
            raise InvalidArgument.of("targets", "a shadow is asked in the others' words: all must share one scaffold.")

    def _may_lead_to(self, targets: Sequence[Target]) -> bool:
        try:
            self._check(targets)
        except (NotFound, InvalidArgument):
            return False
        return True

    def _scaffold(self, model: str) -> str:
        file: ModelFile = self._files.get(model)
        if file.kind is ModelKind.ADAPTER:
            file = self._files.get(file.base)
        if file.kind is not ModelKind.CHAT:
            raise InvalidArgument.of("targets", f"models/{model} is a {file.kind.value} model; it cannot chat.")
        return file.scaffold

    def _demote(self, name: str, entry: _Entry, canary: Seen, stable: Seen) -> None:
        detail = (
            f"{canary.target.model} failed {canary.errors} of its last {canary.requests} requests, "
            f"{stable.target.model} {stable.errors} of {stable.requests}: it gets no more."
        )
        log.warning("alias.demoted", alias=name, model=canary.target.model, detail=detail)
        change = Change(without(entry.now.targets, canary.target.model), detail, datetime.now(UTC), by_rule=True)
        demoted = _Entry(change, entry.before, entry.counted)
        try:
            self._put(name, demoted)
        except OSError as error:  # the caller's answer must not fail for it, and it must hold all the same
            self._entries = {**self._entries, name: demoted}
            log.error("alias.unwritten", alias=name, error=error.strerror)

    def _change(self, name: str, change: Change) -> Alias:
        old = self._entries.get(name)
        before = (*old.before, old.now)[-KEPT_CHANGES:] if old else ()
        return self._put(name, _Entry(change, before))

    def _put(self, name: str, entry: _Entry) -> Alias:
        self._write({**self._entries, name: entry})
        log.info("alias.changed", alias=name, detail=entry.now.detail, models=[t.model for t in entry.now.targets])
        return self._describe(name)

    def _describe(self, name: str) -> Alias:
        entry = self._entries[name]
        nothing = _Counted(deque())
        return Alias(
            name=name,
            targets=entry.now.targets,
            tallies=tuple(entry.counted.get(target.model, nothing).total for target in entry.now.targets),
            detail=entry.now.detail,
            previous=len(entry.before),
            update_time=entry.now.time,
        )

    def _seen(self, entry: _Entry, target: Target) -> Seen:
        last = entry.counted[target.model].last if target.model in entry.counted else ()
        return Seen(target, len(last), sum(last))

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise NotFound(f"There is no alias {name}.")
        return self._entries[name]

    def _read(self) -> dict[str, _Entry]:
        try:
            return {
                name: _Entry(_to_change(item["now"]), tuple(map(_to_change, item["before"])))
                for name, item in (self._file.read() or {}).items()
            }
        except (AttributeError, ValueError, KeyError, TypeError):
            raise self._file.damaged() from None

    def _write(self, entries: dict[str, _Entry]) -> None:
        self._file.write(
            {
                name: {"now": _from_change(entry.now), "before": [_from_change(change) for change in entry.before]}
                for name, entry in entries.items()
            }
        )
        self._entries = entries


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(
        one.requests + other.requests,
        one.errors + other.errors,
        one.output_tokens + other.output_tokens,
        one.seconds + other.seconds,
    )


def _from_change(change: Change) -> dict[str, Any]:
    return asdict(change) | {"time": change.time.isoformat()}


def _to_change(item: dict[str, Any]) -> Change:
    targets = tuple(Target(**target) for target in item["targets"])
    return Change(targets, item["detail"], datetime.fromisoformat(item["time"]), item["by_rule"])
