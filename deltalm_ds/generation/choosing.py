"""Choosing among the candidates of a search: what they must have, and what they are ranked by.

Candidates come from any engine. One that has all that it must goes before one that lacks something; else they go by a
reranker's scores, or by their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deltalm_ds.generation.glossary import Forcing, Glossary, missing
from deltalm_ds.generation.interface import Engine, Hypothesis, Ids, ModelVocabulary, SearchOptions
from deltalm_ds.generation.phrases import Phrase, normal
from deltalm_ds.generation.rerank import Candidates, Reranker
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import translate


@dataclass(frozen=True)
class Wishes:
    """What is asked of outputs beside being probable.

    Attributes:
        glossary: forms that they must have.
        banned: phrases that they must not have.
        reranker: what ranks candidates.
    """

    glossary: Glossary | None = None
    banned: tuple[Phrase, ...] = ()
    reranker: Reranker | None = None

    def __bool__(self) -> bool:
        return bool(self.glossary or self.banned or self.reranker)


@dataclass(frozen=True)
class Output:
    """A candidate with its text.

    Attributes:
        text: one line.
        hypothesis: the ids that it came from, and their scores.
        rerank_score: by the reranker, if there is one.
        faults: what it must have and has not, or has and must not, in a few words each.
    """

    text: str
    hypothesis: Hypothesis
    rerank_score: float | None = None
    faults: tuple[str, ...] = ()


class Chooser:
    """Puts the candidates of sentences in order.

    Args:
        engine: that makes them.
        vocabulary: of its model.
        encode: line -> ids with the language tag (`encoder_for`).
        options: of the search; there are as many candidates as the beam, or more if more are asked for.
        wishes: what is asked.
        shows_progress: of `texts`, on stderr.

    Attributes:
        options: those with which candidates are searched for.
        num_faulty: lines given to `texts` so far whose best output has faults.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: ModelVocabulary,
        encode: Callable[[str], Ids],
        options: SearchOptions,
        wishes: Wishes,
        shows_progress: bool = False,
    ) -> None:
        self._shows_progress = shows_progress
        self._engine, self._encode, self._decode, self._wishes = engine, encode, vocabulary.decode, wishes
        sequences = {sequence for phrase in wishes.banned for sequence in sequences_of(phrase, vocabulary)}
        banned = (*options.banned, *sorted(sequences))
        self.options = replace(options, n_best=max(options.n_best, options.beam), banned=banned)
        self.num_faulty = 0
        self._encode_output = lambda text: vocabulary.encode_output(text).tolist()
        self._forcing = Forcing(engine, self._encode_output, vocabulary.decode, self.options)

    def choose(self, lines: Sequence[str], found: Sequence[Sequence[Hypothesis]]) -> list[list[Output]]:
        """Of each line all candidates in order, the best first, and such as were made to have what all lacked.

        Args:
            lines: sources.
            found: their candidates, by a search with `options`.
        """
        sentences = [self._candidates(line, of_line) for line, of_line in zip(lines, found, strict=True)]
        reranker = self._wishes.reranker
        scores: Sequence[Sequence[float | None]] = [[None] * len(one.texts) for one in sentences]
        if reranker:
            scores = reranker.scores(self._engine, sentences)
        return [self._ordered(one, of_one) for one, of_one in zip(sentences, scores, strict=True)]

    def texts(self, lines: Sequence[str]) -> list[list[str]]:
        """Translations of each line in that order."""
        found = list(
            translate(self._engine, lines, self._encode, self.options, bool(self._wishes), self._shows_progress)
        )
        chosen = self.choose(lines, found)
        self.num_faulty += sum(bool(outputs[0].faults) for outputs in chosen)
        return [[output.text for output in outputs] for outputs in chosen]

    def outputs_of(self, lines: Sequence[str], texts: Sequence[str]) -> list[Output]:
        """Outputs that no search gave: with the ids that the model would have said them in, and their scores."""
        longest = self._engine.max_positions - 1
        sources = [self._encode(line)[:longest] for line in lines]
        found = [tuple(self._encode_output(text))[:longest] for text in texts]
        made = []
        for line, text, ids, log_p in zip(lines, texts, found, score(self._engine, sources, found), strict=True):
            total = sum(log_p) / len(log_p) ** self.options.length_penalty
            made.append(Output(text, Hypothesis(ids, total, tuple(log_p)), None, self._faults(line, text)))
        return made

    def _candidates(self, line: str, found: Sequence[Hypothesis]) -> Candidates:
        source = self._encode(line)[: self._engine.max_positions - 1]
        texts = [self._decode(hypothesis.ids) for hypothesis in found]
        forms = self._forms_of(line) if len(source) else []
        if forms and all(missing(forms, text) for text in texts):
            best = min(texts, key=lambda text: len(missing(forms, text)))
            forced = self._forcing.force(source, best, forms)
            if forced is not None:
                found, texts = [*found, forced], [*texts, self._decode(forced.ids)]
        return Candidates(line, source, found, texts)

    def _ordered(self, sentence: Candidates, scores: Sequence[float | None]) -> list[Output]:
        outputs = [
            Output(text, hypothesis, of_text, self._faults(sentence.line, text))
            for text, hypothesis, of_text in zip(sentence.texts, sentence.hypotheses, scores, strict=True)
        ]
        return sorted(outputs, key=lambda one: (len(one.faults), -_score(one)))

    def _faults(self, line: str, text: str) -> tuple[str, ...]:
        lacking = [f"without {form.written}" for form in missing(self._forms_of(line), text)]
        return (*lacking, *(f"with {phrase.written}" for phrase in self._wishes.banned if phrase.occurs(normal(text))))

    def _forms_of(self, line: str) -> list[Phrase]:
        return self._wishes.glossary.forms_of(line) if self._wishes.glossary else []


def _score(output: Output) -> float:
    return output.hypothesis.score if output.rerank_score is None else output.rerank_score


def sequences_of(phrase: Phrase, vocabulary: ModelVocabulary) -> set[tuple[int, ...]]:
    """The ids of a phrase at the begin of a word; without capital letters in it, with one, and with such alone, too."""
    text = phrase.text
    written = {text} if phrase.has_capitals else {text, text[0].upper() + text[1:], text.upper()}
    return {tuple(vocabulary.encode_output(one).tolist()) for one in written} - {()}
