import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.infer.prefix import BLOCK_TOKENS, PrefixIndex, chain

token_lists = st.lists(st.integers(0, 5), max_size=5 * BLOCK_TOKENS).map(lambda ids: np.array(ids, np.int32))


@given(tokens=token_lists, cut=st.integers(0, 5))
def test_a_chain_is_the_same_however_much_of_it_was_known(tokens: np.ndarray, cut: int) -> None:
    whole = chain(tokens, b"salt")
    assert len(whole) == len(tokens) // BLOCK_TOKENS
    assert chain(tokens, b"salt", after=whole[:cut]) == whole


@given(tokens=token_lists)
def test_salts_share_no_key(tokens: np.ndarray) -> None:
    assert not set(chain(tokens, b"one")) & set(chain(tokens, b"two"))


@given(left=token_lists, right=token_lists)
def test_equal_keys_mean_equal_prefixes_and_only_those(left: np.ndarray, right: np.ndarray) -> None:
    for count, (a, b) in enumerate(zip(chain(left, b""), chain(right, b""), strict=False), start=1):
        end = count * BLOCK_TOKENS
        assert (a == b) == bool((left[:end] == right[:end]).all())


def test_a_shared_block_is_counted_once_and_stays_while_anyone_holds_it() -> None:
    index = PrefixIndex()
    for key in (b"a", b"b"):
        index.insert(1, key)
    index.share(1, 2, 2)
    index.insert(2, b"c")
    assert index.cells == 3 * BLOCK_TOKENS
    index.drop(1)
    assert index.cells == 3 * BLOCK_TOKENS
    assert index.match([b"a", b"b", b"c", b"d"]) == (2, 3)
    index.drop(2)
    assert index.cells == 0
    assert index.match([b"a"]) == (-1, 0)


def test_the_idle_sequence_that_was_longest_unused_goes_first() -> None:
    index = PrefixIndex()
    for sequence, key in ((1, b"a"), (2, b"b"), (3, b"c")):
        index.insert(sequence, key)
        assert index.retire(sequence)
    index.share(1, 4, 1)  # 1 is used again
    assert [index.evict(), index.evict()] == [2, 3]
    assert index.match([b"a"])[1] == 1


def test_an_ended_sequence_that_others_hold_wholly_is_not_kept() -> None:
    index = PrefixIndex()
    index.insert(1, b"a")
    index.share(1, 2, 1)
    assert not index.retire(1)
    assert index.match([b"a"]) == (2, 1)


class Holders(RuleBasedStateMachine):
    """The index against a plain model: who holds which keys."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[int, list[bytes]] = {}
        self.idle: set[int] = set()
        self.next = 0

    @rule(data=st.data(), count=st.integers(0, 4))
    def admit(self, data: st.DataObject, count: int) -> None:
        keys = [b"%d" % data.draw(st.integers(0, 2)) for _ in range(count)]
        keys = [b"/".join(keys[: i + 1]) for i in range(count)]
        source, found = self.index.match(keys)
        if found:
            assert self.held[source][:found] == keys[:found]
            self.index.share(source, self.next, found)
        for key in keys[found:]:
            self.index.insert(self.next, key)
        self.held[self.next] = keys
        self.next += 1

    @precondition(lambda self: self.held.keys() - self.idle)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.held.keys() - self.idle)))
        if self.index.retire(sequence):
            self.idle.add(sequence)
        else:
            keys = self.held.pop(sequence)
            assert not keys or self.index.match(keys)[1] == len(keys), "nothing that could be found was lost"

    @rule()
    def evict(self) -> None:
        gone = self.index.evict()
        assert (gone >= 0) == bool(self.idle)
        if gone >= 0:
            self.idle.remove(gone)
            del self.held[gone]

    @invariant()
    def cells_lie_between_distinct_keys_and_all(self) -> None:
        keys = [key for held in self.held.values() for key in held]
        assert len(set(keys)) * BLOCK_TOKENS <= self.index.cells <= len(keys) * BLOCK_TOKENS
        assert self.index.idle == len(self.idle)
        assert 0 <= self.index.idle_cells <= self.index.cells


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
