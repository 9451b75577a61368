"""Sentences of a small grammar and their translation, with compositions that training never has (after SCAN,
Lake and Baroni 2017, arXiv 1711.00350)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE, Split, draws
from flagformer.lab.data.disjoint import rows_of_split
from flagformer.lab.data.generated import Generated, Numbers

GENDERS = 2
Noun = tuple[int, int | None]  # a noun, and its adjective


class Grammar(Generated):
    """`small dog sees cat that hears bird` -> `dog small.m bird hears.f that cat sees.m`, with an end token.

    A sentence has up to `clauses` verbs; each clause after the first describes the object of the one before.
    In the source an adjective precedes its noun and a verb its object. In the translation the adjective
    follows and has the gender of its noun, the verb is last and has the gender of its subject, and a clause
    with its `that` precedes the noun that it describes. The gender of a noun is its index modulo 2. A share
    of `1 / held_out` of the combinations of an adjective and a noun occurs in no row for training or
    validation; each row of the test split has at least one of them.

    A row is the source, after blanks, in the first half, a separator, and the translation, which is scored;
    as a pair, the first half is the source. Tokens: words of the source (nouns, adjectives, verbs, `that`),
    words of the translation (nouns, adjectives and verbs of two genders, `that`), end, separator, blank.
    """

    has_pairs: ClassVar[bool] = True
    metric: ClassVar[str] = (
        "tokens of the translation; accuracy: the share predicted right; chance: 1 / number of words and the "
        "end token of the translation"
    )

    source: Literal["grammar"]
    nouns: int = Field(default=8, ge=2, le=4096, description="Number of nouns.")
    adjectives: int = Field(default=8, ge=2, le=4096, description="Number of adjectives.")
    verbs: int = Field(default=8, ge=1, le=4096, description="Number of verbs.")
    clauses: int = Field(default=2, ge=1, le=64, description="Largest number of verbs of a sentence.")
    held_out: int = Field(
        default=4,
        ge=2,
        le=64,
        description="One of so many combinations of an adjective and a noun is held out.",
    )

    @property
    def num_tokens(self) -> int:
        return self._words + self._translations + 2

    @property
    def _words(self) -> int:
        return self.nouns + self.adjectives + self.verbs + 1

    @property
    def _translations(self) -> int:
        """The words of the translation and the end token."""
        return self.nouns + GENDERS * (self.adjectives + self.verbs) + 2

    @property
    def chance(self) -> float | None:
        return 1 / self._translations

    def least(self) -> tuple[int, str]:
        return 12, "a sentence of one clause and its translation"

    def pair_lengths(self, seq_len: int) -> tuple[int, int]:
        return seq_len // 2, seq_len // 2

    def is_held_out(self, adjective: int, noun: int) -> bool:
        """Whether this combination occurs in the test split only."""
        return (adjective + noun) % self.held_out == 0

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        sources, translations = self.paired(split, step, seed, batch_size, seq_len)
        half, separator = seq_len // 2, self.num_tokens - 2
        inputs = torch.full((batch_size, seq_len), separator + 1)
        inputs[:, :half] = sources
        inputs[:, half] = separator
        inputs[:, half + 1 : 2 * half] = translations[:, :-1].masked_fill(
            translations[:, :-1] == IGNORE, separator + 1
        )
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, half : 2 * half] = translations
        return inputs, targets

    def paired(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        self.check_length(seq_len)
        generator = draws("pairs", split, seed, step, seq_len)
        numbers = Numbers(generator)

        def draw() -> tuple[Tensor, Tensor]:
            drawn = [self._pair(seq_len // 2, numbers) for _ in range(batch_size)]
            chosen = [(one, two) for one, two, held in drawn if held == (split == "test")]
            shape = (len(chosen), seq_len // 2)
            sources, translations = zip(*chosen) if chosen else ((), ())
            return torch.tensor(sources).view(shape).long(), torch.tensor(translations).view(shape).long()

        return rows_of_split(split, draw, batch_size)

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise TypeError("rows of a grammar depend on the split; use `batch`")

    def _pair(self, length: int, numbers: Numbers) -> tuple[list[int], list[int], bool]:
        """A source and a translation of `length` tokens, and whether a combination in it is held out."""
        clauses = 1 + numbers.below(min(self.clauses, (length - 2) // 4))
        nouns = [self._noun(numbers) for _ in range(clauses + 1)]
        verbs = [numbers.below(self.verbs) for _ in range(clauses)]
        source, translation = self.source_of(nouns, verbs), self.translation_of(nouns, verbs)
        held = any(one is not None and self.is_held_out(one, noun) for noun, one in nouns)
        blanks, unscored = length - len(source), length - len(translation)
        return [self.num_tokens - 1] * blanks + source, translation + [IGNORE] * unscored, held

    def _noun(self, numbers: Numbers) -> Noun:
        return numbers.below(self.nouns), numbers.below(self.adjectives) if numbers.below(2) else None

    def source_of(self, nouns: list[Noun], verbs: list[int]) -> list[int]:
        """The tokens of a sentence: a noun, then for each verb the verb and its object."""
        that = self._words - 1
        tokens: list[int] = []
        for place, (noun, adjective) in enumerate(nouns):
            if place:
                tokens += [that] * (place > 1) + [self.nouns + self.adjectives + verbs[place - 1]]
            tokens += ([] if adjective is None else [self.nouns + adjective]) + [noun]
        return tokens

    def translation_of(self, nouns: list[Noun], verbs: list[int]) -> list[int]:
        """The tokens of the translation, with the end token."""
        first = self._words
        adjective_of, verb_of = first + self.nouns, first + self.nouns + GENDERS * self.adjectives
        that = verb_of + GENDERS * self.verbs

        def phrase(place: int) -> list[int]:
            noun, adjective = nouns[place]
            own = [] if adjective is None else [adjective_of + GENDERS * adjective + noun % GENDERS]
            return [first + noun, *own]

        def verb(place: int) -> int:
            return verb_of + GENDERS * verbs[place] + nouns[place][0] % GENDERS

        described = phrase(len(verbs))  # the object of the last verb
        for place in range(len(verbs) - 1, 0, -1):
            described = [*described, verb(place), that, *phrase(place)]
        return [*phrase(0), *described, verb(0), that + 1]
