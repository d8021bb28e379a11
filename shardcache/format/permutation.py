"""A keyed bijection of ``range(n)``, computed both ways without a table.

The layout of a shuffled cache and every order of an epoch are this function, so it is part of the format: its output
for some keys is frozen in a test, and it must never change.

It is a Feistel network over the smallest power of two that holds ``n``, with cycle walking: a value that lands outside
``range(n)`` is sent through again until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains",
2002). The two halves differ by one bit where the number of bits is odd (an alternating network), so that the domain is
never more than twice ``n`` and a walk takes fewer than two steps on average.

In full, for ``n`` of 2 or more (``n`` of 0 or 1 changes nothing): with ``b = max(2, bits of n - 1)``, the low half of
a word is its lower ``b - b // 2`` bits, the high half the ``b // 2`` bits above. Rounds 0 to 7 alternate, in this
order: an even one does ``high ^= F(low)`` and an odd one ``low ^= F(high)``, each cut to the bits of the half that it
changes. ``F(half)`` of round r is ``((w ^ w >> 32) * M2) >> 32`` with ``w = (half ^ derive(key, r)) * M1``. The inverse
takes the rounds from 7 to 0. ``derive(key, a, b, ...)`` replaces the key by ``mix(key + G + part)`` for one part after
the other, a negative part as its two's complement; ``mix`` is the finalizer of SplitMix64: ``w ^= w >> 30; w *= M1;
w ^= w >> 27; w *= M2; w ^= w >> 31``. G is 0x9E3779B97F4A7C15, M1 0xBF58476D1CE4E5B9, M2 0x94D049BB133111EB.

All arithmetic is on unsigned 64-bit integers, wrapping.
"""

import copy
from collections.abc import Callable
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

MAX_LENGTH = 1 << 62
_ROUNDS = 8
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_MIX1_WORD, _MIX2_WORD, _HALF = np.uint64(_MIX1), np.uint64(_MIX2), np.uint64(32)
_AT_ONCE = 1 << 16
_FEW = 8  # up to so many words are quicker one by one than as an array


def mix(word: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): one 64-bit word to another, well mixed."""
    word = ((word ^ (word >> 30)) * _MIX1) & _MASK
    word = ((word ^ (word >> 27)) * _MIX2) & _MASK
    return word ^ (word >> 31)


def derive(key: int, *parts: int) -> int:
    """A new key from a key and some integers, e.g. (seed, epoch, lane)."""
    for part in parts:
        key = mix((key + _GOLDEN + (part & _MASK)) & _MASK)
    return key


def mix_array(words: _Words) -> _Words:
    """:func:`mix` of every element; the argument is overwritten."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(_MIX1)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_MIX2)
    words ^= words >> np.uint64(31)
    return words


def random_words(key: int, counters: Integers) -> _Words:
    """A random 64-bit word for every counter; the same key and counter give the same word everywhere."""
    words = counters.astype(np.uint64)
    words *= np.uint64(_GOLDEN)
    words += np.uint64(mix(key))
    return mix_array(words)


class Permutation:
    """The bijection of ``range(length)`` that belongs to ``key``.

    ``forward`` and ``inverse`` take an int or an array of int64 and give the same kind back.
    """

    def __init__(self, length: int, key: int) -> None:
        assert 0 <= length <= MAX_LENGTH, length
        self.length, self.key = length, key
        bits = max(2, (length - 1).bit_length())
        self._low_bits = bits - bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits // 2)) - 1
        self._keys: list[Any] = [derive(key, number) for number in range(_ROUNDS)]

    def _of(self, places: Integers | int) -> "Permutation":  # noqa: ARG002
        """What maps the numbers at some places of those that are mapped, or the number at one."""
        return self

    @overload
    def forward(self, index: int) -> int: ...
    @overload
    def forward(self, index: Integers) -> Integers: ...
    def forward(self, index: int | Integers) -> int | Integers:
        """Where ``index`` goes."""
        return self._walk(index, range(_ROUNDS))

    @overload
    def inverse(self, index: int) -> int: ...
    @overload
    def inverse(self, index: Integers) -> Integers: ...
    def inverse(self, index: int | Integers) -> int | Integers:
        """What goes to ``index``."""
        return self._walk(index, range(_ROUNDS - 1, -1, -1))

    def _walk(self, index: int | Integers, rounds: range) -> int | Integers:
        if self.length <= 1:
            return index if isinstance(index, int) else index.copy()
        if isinstance(index, int):
            return self._walk_back(self._int_rounds(index, rounds), rounds)
        words = self._array_rounds(index.astype(np.uint64), rounds)
        outside = np.flatnonzero(words >= self.length)
        while len(outside) > _FEW:
            walked = self._of(outside)._array_rounds(words[outside], rounds)
            words[outside] = walked
            outside = outside[walked >= self.length]
        for place in outside.tolist():
            words[place] = self._of(place)._walk_back(int(words[place]), rounds)
        return words.view(np.int64)

    def _walk_back(self, word: int, rounds: range) -> int:
        while word >= self.length:
            word = self._int_rounds(word, rounds)
        return word

    def _int_rounds(self, word: int, rounds: range) -> int:
        high, low = word >> self._low_bits, word & self._low_mask
        high_mask, low_mask, mask, keys = self._high_mask, self._low_mask, _MASK, self._keys
        for number in rounds:  # a half has 32 bits at most: what the second product has beyond 64 is masked away
            if number & 1:
                mixed = (high ^ keys[number]) * _MIX1 & mask
                low ^= (mixed ^ mixed >> 32) * _MIX2 >> 32 & low_mask
            else:
                mixed = (low ^ keys[number]) * _MIX1 & mask
                high ^= (mixed ^ mixed >> 32) * _MIX2 >> 32 & high_mask
        return high << self._low_bits | low

    def _array_rounds(self, words: _Words, rounds: range) -> _Words:
        low_bits, low_mask = np.uint64(self._low_bits), np.uint64(self._low_mask)
        high_mask = np.uint64(self._high_mask)
        high, low = words >> low_bits, words & low_mask
        for number in rounds:
            if number % 2 == 0:
                high ^= self._array_round(low, number, high_mask)
            else:
                low ^= self._array_round(high, number, low_mask)
        high <<= low_bits
        high |= low
        return high

    def _array_round(self, half: _Words, number: int, mask: np.uint64) -> _Words:
        word = half ^ np.uint64(self._keys[number])
        word *= _MIX1_WORD
        word ^= word >> _HALF
        word *= _MIX2_WORD
        word >>= _HALF
        word &= mask
        return word


class Windows:
    """The rows of a layout ``window``: each window of ``window`` rows is permuted by itself, by a key of its own.

    What :class:`Permutation` is to a shuffled layout, with the same methods.
    """

    def __init__(self, length: int, window: int, key: int) -> None:
        self.length, self.window, self.key = length, window, key
        self._whole = length // window  # windows of full length
        self._last = Permutation(length % window, derive(key, self._whole))

    @overload
    def forward(self, index: int) -> int: ...
    @overload
    def forward(self, index: Integers) -> Integers: ...
    def forward(self, index: int | Integers) -> int | Integers:
        """The source index of a row."""
        return self._each(index, Permutation.forward)

    @overload
    def inverse(self, index: int) -> int: ...
    @overload
    def inverse(self, index: Integers) -> Integers: ...
    def inverse(self, index: int | Integers) -> int | Integers:
        """The row of a source index."""
        return self._each(index, Permutation.inverse)

    def _each(self, index: int | Integers, of: Callable[[Permutation, Any], Any]) -> int | Integers:
        if isinstance(index, int):
            number, inside = divmod(index, self.window)
            is_last = number == self._whole
            found: int = of(self._last if is_last else Permutation(self.window, derive(self.key, number)), inside)
            return number * self.window + found
        mapped = np.empty_like(index)
        for start in range(0, len(index), _AT_ONCE):  # each takes some hundred bytes meanwhile
            part = slice(start, start + _AT_ONCE)
            mapped[part] = self._some(index[part], of)
        return mapped

    def _some(self, indices: Integers, of: Callable[[Permutation, Any], Any]) -> Integers:
        numbers, places = np.divmod(indices, self.window)
        is_last = numbers == self._whole
        places[is_last] = of(self._last, places[is_last])
        places[~is_last] = of(_EachItsOwn(self.window, self.key, numbers[~is_last]), places[~is_last])
        return numbers * self.window + places


class _EachItsOwn(Permutation):
    """Bijections of one length, a key for each number that is to be mapped: ``derive(key, part)`` of its part."""

    def __init__(self, length: int, key: int, parts: Integers) -> None:
        super().__init__(length, key)
        keys = _derived(np.full(len(parts), key & _MASK, np.uint64), parts)
        self._keys = [_derived(keys, np.full(len(parts), number, np.int64)) for number in range(_ROUNDS)]

    def _of(self, places: Integers | int) -> Permutation:
        some = copy.copy(self)
        some._keys = [int(keys[places]) if isinstance(places, int) else keys[places] for keys in self._keys]
        return some


def _derived(keys: _Words, parts: Integers) -> _Words:
    """:func:`derive` of every element."""
    words = parts.astype(np.uint64)
    words += keys
    words += np.uint64(_GOLDEN)
    return mix_array(words)
