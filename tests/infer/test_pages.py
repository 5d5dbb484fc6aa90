import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.infer.pages import PAGE_TOKENS, Copy, Pages, Save, Trim, chain, root

token_lists = st.lists(st.integers(0, 5), max_size=5 * PAGE_TOKENS).map(lambda ids: np.array(ids, np.int32))


@given(tokens=token_lists, cut=st.integers(0, 5))
def test_a_chain_is_the_same_however_much_of_it_was_known(tokens: np.ndarray, cut: int) -> None:
    whole = chain(tokens, b"root")
    assert len(whole) == len(tokens) // PAGE_TOKENS
    assert chain(tokens, b"root", after=whole[:cut]) == whole


@given(tokens=token_lists)
def test_salts_models_and_adapters_share_no_key(tokens: np.ndarray) -> None:
    roots = [root(b"one", b"m", ""), root(b"two", b"m", ""), root(b"one", b"n", ""), root(b"one", b"m", "lora")]
    keys = [key for under in roots for key in chain(tokens, under)]
    assert len(set(keys)) == len(keys)


@given(left=token_lists, right=token_lists)
def test_equal_keys_mean_equal_prefixes_and_only_those(left: np.ndarray, right: np.ndarray) -> None:
    for count, (a, b) in enumerate(zip(chain(left, b""), chain(right, b""), strict=False), start=1):
        end = count * PAGE_TOKENS
        assert (a == b) == bool((left[:end] == right[:end]).all())


def fill(pages: Pages, keys: list[bytes], room: int) -> int:
    """Reserve for `keys`, and compute those that are not shared."""
    placed = pages.reserve(keys, room)
    assert placed
    for key in keys[placed.shared :]:
        pages.complete(placed.sequence, key)
    return placed.sequence


def test_a_shared_page_is_counted_once_and_stays_while_anyone_holds_it() -> None:
    pages = Pages(10, 4, most_cached=10)
    first = fill(pages, [b"a", b"b"], 3)
    second = fill(pages, [b"a", b"b", b"c"], 4)
    assert (pages.used, pages.free) == (5, 5)
    assert Copy(first, second, 128) in pages.take_moves(0)
    pages.retire(first)
    assert (pages.used, pages.cached) == (4, 0)
    pages.retire(second)
    assert (pages.used, pages.cached, pages.free) == (0, 3, 7)
    assert pages.match([b"a", b"b", b"c", b"d"]) == 3


def test_the_idle_pages_that_were_longest_unused_go_first_and_from_their_end() -> None:
    pages = Pages(6, 8, most_cached=6)
    for keys in ([b"a", b"aa"], [b"b", b"bb"], [b"c", b"cc"]):
        pages.retire(fill(pages, keys, 2))
    pages.retire(fill(pages, [b"a", b"aa"], 2))  # is used again
    fill(pages, [b"d"], 3)
    assert [pages.match([*keys]) for keys in ((b"a", b"aa"), (b"b", b"bb"), (b"c", b"cc"))] == [2, 0, 1]


def test_what_is_reserved_is_never_given_twice() -> None:
    pages = Pages(4, 8, most_cached=4)
    assert pages.reserve([], 3)
    assert pages.reserve([], 2) is None
    assert pages.reserve([], 1)
    assert pages.free == 0


def test_the_room_that_retiring_makes_counts_a_shared_page_once_and_only_where_all_holders_go() -> None:
    pages = Pages(12, 8, most_cached=12)
    low = [fill(pages, [b"a", b"b"], 4), fill(pages, [b"a", b"b", b"c"], 4)]
    stays = fill(pages, [b"a", b"d"], 3)
    pages.retire(fill(pages, [b"e"], 1))
    assert (pages.free, pages.cached, pages.used) == (3, 1, 8)
    assert pages.room([], []) == 4
    assert pages.room([], low[:1]) == 6, "what it reserved"
    assert pages.room([], low) == 9, "and b and c; a is held by who stays"
    assert pages.room([b"a", b"d", b"x"], low) == 9 + 2, "which are shared"
    assert pages.room([b"a", b"b"], low) == 9 + 1
    assert pages.room([b"e"], [*low, stays]) == 12
    for sequence in low:
        pages.retire(sequence)
    assert pages.reserve([b"a", b"d", b"x"], 12) is None
    assert pages.reserve([b"a", b"d", b"x"], 11)


def test_a_page_is_saved_before_it_goes_and_once() -> None:
    below = {b"known"}
    pages = Pages(3, 4, most_cached=3, saved=below.__contains__)
    pages.retire(fill(pages, [b"known", b"b", b"c"], 3))
    assert [move for move in pages.take_moves(1) if isinstance(move, Save)] == [Save(3, 1, b"b")]
    assert pages.pending
    below.add(b"b")
    fill(pages, [b"x", b"y", b"z"], 3)
    moves = pages.take_moves(0)
    assert [move for move in moves if isinstance(move, Save)] == [Save(3, 2, b"c")]
    assert moves.index(Save(3, 2, b"c")) < moves.index(Trim(3, 128)) < moves.index(Trim(3, 0))


class Device(RuleBasedStateMachine):
    """Two tenants' prompts on a small device, against a plain model of who holds what."""

    TOTAL, IDS = 12, 5

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(self.TOTAL, self.IDS, most_cached=8, saved=lambda key: key in self.saved)
        self.saved: dict[bytes, list[bytes]] = {}
        self.cells: dict[int, list[bytes]] = {}  # what the cache holds by sequence, told by moves and completions
        self.running: dict[int, tuple[list[bytes], int]] = {}  # keys to come, pages reserved in all

    def follow(self) -> None:
        for move in self.pages.take_moves(2):
            if isinstance(move, Copy):
                assert not self.cells.get(move.target), "a copy goes to an empty sequence"
                self.cells[move.target] = self.cells[move.source][: move.tokens // PAGE_TOKENS]
                assert len(self.cells[move.target]) == move.tokens // PAGE_TOKENS
            elif isinstance(move, Trim):
                self.cells[move.sequence] = self.cells.get(move.sequence, [])[: move.tokens // PAGE_TOKENS]
            elif isinstance(move, Save):
                assert self.cells[move.sequence][move.page] == move.key, "what is saved is what the key names"
                self.saved[move.key] = self.cells[move.sequence][: move.page + 1]

    @precondition(lambda self: len(self.running) < self.IDS - 1)
    @rule(
        tenant=st.sampled_from([b"one", b"two"]), prompt=st.lists(st.integers(0, 1), max_size=5), more=st.integers(1, 3)
    )
    def admit(self, tenant: bytes, prompt: list[int], more: int) -> None:
        tokens = np.repeat(np.array(prompt, np.int32), PAGE_TOKENS)
        keys = chain(tokens, root(tenant, b"m", ""))
        before = (self.pages.free, self.pages.used, self.pages.cached)
        placed = self.pages.reserve(keys, len(keys) + more)
        if placed is None:
            assert len(keys) + more > before[0] + before[2] - self.pages.match(keys), "refused only where it cannot fit"
            return
        self.follow()
        assert self.cells.get(placed.sequence, []) == keys[: placed.shared], "shared cells are of these very keys"
        assert placed.sequence not in self.running
        self.running[placed.sequence] = (keys, len(keys) + more)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.running)))
        keys, room = self.running[sequence]
        held = len(self.cells.setdefault(sequence, []))
        if held < room:
            before = self.cells[sequence][-1] if held else b""
            key = keys[held] if held < len(keys) else chain(np.full(64, held, np.int32), before)[0]
            self.pages.complete(sequence, key)
            self.cells[sequence].append(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[sequence]
        self.pages.retire(sequence)

    @invariant()
    def used_free_and_cached_are_all_and_none_is_counted_twice(self) -> None:
        self.follow()
        pages = self.pages
        assert pages.free + pages.used + pages.cached == self.TOTAL
        assert min(pages.free, pages.used, pages.cached) >= 0
        assert sum(room for _, room in self.running.values()) >= pages.used
        if not self.running:
            assert pages.used == 0, "nothing leaks"
        held = {key for cells in self.cells.values() for key in cells}
        assert len(held) <= pages.used + pages.cached
        assert set(pages._by_key) <= held, "nothing is found that is not there"
        ids = [*pages._ids, *pages._tables]
        assert sorted(ids) == list(range(self.IDS)), "each sequence id is free or taken, once"


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
