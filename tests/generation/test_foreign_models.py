"""Models of transformers and CTranslate2 that are not ours, beside what these libraries do with them themselves."""

import json

import ctranslate2
import foreign_toys
import numpy as np
import pytest
import torch
from foreign_toys import CODES, FAMILIES, IN_TEXT, LONGEST, TEXTS, ctranslate2_tokens, languages_of, opened

import deltalm_ds
from deltalm_ds.errors import InputError
from deltalm_ds.generation.engines.transformers import IdMap
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine, load_vocabulary
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import encoder_for, generate, translate

pytest.importorskip("transformers", reason="the extra export is not installed")

PRECISION = 1e-4  # T5's random weights give log p of -45, of which float32 is off by 1e-3, ours and theirs alike


class Theirs:
    """A model as transformers' documentation says that it is used."""

    def __init__(self, family, directory):
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self.family = family
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
        self.model.generation_config.forced_eos_token_id = None  # fairseq's rules: it has its own log p
        self.begin = [self.model.generation_config.decoder_start_token_id]
        if family in CODES:
            self.tokenizer.src_lang, target = CODES[family]
            self.tokenizer.tgt_lang = target
            token = f"__{target}__" if family == "m2m" else target
            language = self.tokenizer.convert_tokens_to_ids(token)
            self.begin = [language] if family == "mbart" else [*self.begin, language]
        if family == "bart":
            self.begin.append(0)

    def batch(self, texts):
        texts = [IN_TEXT.get(self.family, "") + text for text in texts]
        return self.tokenizer(texts, return_tensors="pt", padding=True)

    def search(self, texts, beam, **options):
        """Of each text the ids between the first tokens and `</s>`, and with a beam the score."""
        from deltalm_ds.export.hugging_face_files.modeling_deltalm import EndAt

        found = self.model.generate(
            **self.batch(texts),
            decoder_input_ids=torch.tensor([self.begin] * len(texts)),
            decoder_start_token_id=self.begin[0],
            num_beams=beam,
            early_stopping=beam > 1,
            do_sample=False,
            bad_words_ids=[[self.tokenizer.pad_token_id]],
            logits_processor=[EndAt(LONGEST + 1 + len(self.begin), self.tokenizer.eos_token_id)],
            max_new_tokens=LONGEST + 1,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
        rows = [row[len(self.begin) :] for row in found.sequences.tolist()]
        return [row[: row.index(self.tokenizer.eos_token_id)] for row in rows], found.get("sequences_scores")

    @torch.inference_mode()
    def log_p(self, text, ids):
        """Of the ids and `</s>`: a forward pass without padding."""
        given = torch.tensor([[*self.begin, *ids]])
        logits = self.model(**self.batch([text]), decoder_input_ids=given).logits[0, len(self.begin) - 1 :]
        wanted = torch.tensor([*ids, self.tokenizer.eos_token_id])
        return logits.log_softmax(1).gather(1, wanted[:, None])[:, 0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_itself_finds_the_same(family, directories):
    theirs, vocabulary, engine = Theirs(family, directories[family]), *opened(directories[family])
    encode = encoder_for(vocabulary, *languages_of(family))
    for text, row, mask in zip(TEXTS, *theirs.batch(TEXTS).values(), strict=True):
        inputs, begin = engine._inputs([encode(text)])
        assert inputs["input_ids"].tolist() == [row[mask.bool()].tolist()]
        assert begin.tolist() == [theirs.begin]
    for beam, options in (
        (1, {}),
        (4, {}),
        (3, {"min_new_tokens": 6, "no_repeat_ngram_size": 2, "length_penalty": 0.5}),
    ):
        ours = SearchOptions(
            beam=beam,
            min_length=options.get("min_new_tokens", 0),
            max_length=LONGEST,
            no_repeat_ngram_size=options.get("no_repeat_ngram_size", 0),
            length_penalty=options.get("length_penalty", 1.0),
        )
        found = [hypotheses[0] for hypotheses in generate(engine, list(map(encode, TEXTS)), ours)]
        rows, scores = theirs.search(TEXTS, beam, **options)
        assert [list(one.ids) for one in found] == rows
        if beam > 1:
            assert [one.score for one in found] == pytest.approx(scores.tolist(), rel=PRECISION, abs=PRECISION)
    texts = theirs.tokenizer.batch_decode(rows, skip_special_tokens=True)
    if family not in ("m2m", "marian", "bart"):  # they show languages or line breaks
        assert [vocabulary.decode(one.ids) for one in found] == texts


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_forward_pass(family, directories):
    theirs, vocabulary, engine = Theirs(family, directories[family]), *opened(directories[family])
    encode = encoder_for(vocabulary, *languages_of(family))
    outputs = [theirs.tokenizer(text_target=text, add_special_tokens=False)["input_ids"] for text in ("the dog", "a")]
    assert [vocabulary.encode_output(text).tolist() for text in ("the dog", "a")] == outputs
    found = score(engine, list(map(encode, TEXTS)), [*outputs, []])
    for text, ids, log_p in zip(TEXTS, [*outputs, []], found, strict=True):
        assert log_p == pytest.approx(theirs.log_p(text, ids), rel=PRECISION, abs=PRECISION)


@pytest.mark.parametrize("family", FAMILIES)
def test_ctranslate2_itself_finds_the_same(family, converted, directories):
    """Given the tokens that the tokenizer of transformers gives, with the target's language as a prefix."""
    directory, theirs = converted[family], Theirs(family, directories[family])
    vocabulary, engine = opened(directory)
    target, source = (None, None) if family == "t5" else languages_of(family)  # T5's tasks are not in such a directory
    encode = encoder_for(vocabulary, target, source)
    texts = [(IN_TEXT["t5"] if family == "t5" else "") + text for text in TEXTS]
    found = generate(engine, list(map(encode, texts)), SearchOptions(beam=4, length_penalty=0, max_length=LONGEST))
    names = theirs.tokenizer.convert_ids_to_tokens
    prefix = names(theirs.begin if family == "mbart" else theirs.begin[1:])
    given = [
        names([token for token, is_there in zip(row, mask, strict=True) if is_there])
        for row, mask in zip(*(part.tolist() for part in theirs.batch(TEXTS).values()), strict=True)
    ]
    expected = ctranslate2.Translator(str(directory)).translate_batch(
        given,
        target_prefix=[prefix] * len(given) if prefix else None,
        beam_size=4,
        num_hypotheses=4,
        length_penalty=1e-9,
        min_decoding_length=1 + len(theirs.begin[1:]),
        max_decoding_length=LONGEST + len(theirs.begin[1:]),
    )
    tokens = ctranslate2_tokens(directory)
    for text, of_text, wanted in zip(TEXTS, found, expected, strict=True):
        outputs = [one[len(theirs.begin[1:]) :] for one in wanted.hypotheses]
        assert [tokens[token] for token in of_text[0].ids] in outputs
        ids = theirs.tokenizer.convert_tokens_to_ids([tokens[token] for token in of_text[0].ids])
        (again,) = score(engine, [encode(texts[TEXTS.index(text)])], [of_text[0].ids])
        assert again == pytest.approx(theirs.log_p(text, ids), abs=0.01)  # without Marian's <pad>, a little more


def test_ids_that_are_elsewhere_have_places_in_the_search():
    for eos, pad in ((1, 0), (0, 58), (2, 1), (1, 2), (5, 1), (2, 9), (7, 8), (0, 2)):
        ids = IdMap(eos, pad)
        there = ids.to_search(range(60))
        assert sorted(there) == list(range(60)) and ids.to_model(there) == tuple(range(60))
        assert (there[eos], there[pad]) == (2, 1)
        assert ids.rows_to_model(torch.tensor(there)).tolist() == list(range(60))
        assert ids.columns_to_search(torch.arange(60.0)[None])[0, list(there)].tolist() == list(range(60))


@pytest.mark.parametrize("family", ["nllb", "t5"])
def test_a_sentence_gives_what_it_gives_alone(family, directories):
    vocabulary, engine = opened(directories[family])
    encode = encoder_for(vocabulary, *languages_of(family))
    sources = [encode(text) for text in TEXTS]
    banned = (tuple(vocabulary.encode_output("a").tolist()),)
    prefix = tuple(vocabulary.encode_output("the").tolist())
    for options in (
        SearchOptions(beam=3, n_best=3, max_length=9, banned=banned, prefix=prefix, max_length_ratio=0.9),
        SearchOptions(n_best=3, max_length=9, temperature=0.8, top_k=20, seed=3),
    ):
        together = generate(engine, sources, options)
        for source, found in zip(sources, together, strict=True):
            (alone,) = generate(engine, [source], options)
            assert [one.ids for one in alone] == [one.ids for one in found]
            np.testing.assert_allclose([one.score for one in alone], [one.score for one in found], rtol=1e-5, atol=1e-4)


def test_directions_share_a_batch(directories):
    vocabulary, engine = opened(directories["mbart"])
    sources = [encoder_for(vocabulary, *of)(TEXTS[0]) for of in (("fr", "en"), ("de", "en"), ("fr", "de"))]
    options = SearchOptions(beam=2, max_length=9)
    alone = [generate(engine, [source], options)[0][0].ids for source in sources]
    assert [found[0].ids for found in generate(engine, sources, options)] == alone
    assert len(set(alone)) == 3


def test_verbs_take_them(directories, converted, run, tmp_path):
    """Lines are kept, empty and long ones too; what verbs and Python give is the same."""
    lines = ["A dog.", "", "The river is wide. " * 20]
    (tmp_path / "test.en-fr.en").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "test.en-fr.fr").write_text("le\n\nla rivi\u00e8re\n")
    to_french = "--target-lang", "fr", "--source-lang", "en"
    for directory in (directories["nllb"], converted["m2m"]):
        options = "--beam", 2, "--max-length", 9
        output = run("translate", directory, "--input", tmp_path / "test.en-fr.en", *to_french, *options)
        assert len(output.splitlines()) == 3 and not output.splitlines()[1]
        translator = deltalm_ds.Translator(directory, options=SearchOptions(beam=2, max_length=9))
        encode = encoder_for(translator.vocabulary, "fr", "en")
        found = translate(translator.engine, lines, encode, translator.options)
        assert [translator.vocabulary.decode(one[0].ids) for one in found] == output.splitlines()
        assert translator("A dog.", "fr", "en")
        sides = "--source", tmp_path / "test.en-fr.en", "--target", tmp_path / "test.en-fr.fr"
        with pytest.raises(InputError, match="Line 3: the source has"):
            run("score", directory, *sides, *to_french)
        whole = json.loads(run("evaluate", directory, "--data", tmp_path, "--directions", "en-fr", "--json", *options))
        files = "--source", tmp_path / "test.en-fr.en", "--reference", tmp_path / "test.en-fr.fr"
        named = json.loads(run("evaluate", directory, *files, *to_french, "--json", *options))
        assert whole["directions"][0]["bleu"] == named["directions"][0]["bleu"]
    (tmp_path / "a").write_text("a\n")
    rows = run("score", directories["mbart50"], "--source", tmp_path / "a", "--target", tmp_path / "a", *to_french)
    assert float(rows.split("\t")[0]) < 0


def test_options_of_the_search_and_choices_work(directories, run, tmp_path):
    (tmp_path / "glossary").write_text("dog\tHund\n")
    for options in (
        ("--temperature", 1, "--n-best", 2),
        ("--prefix", "the", "--no-repeat-ngram-size", 2),
        ("--glossary", tmp_path / "glossary", "--beam", 2),
        ("--rerank", "mbr", "--beam", 2),
        ("--document",),
    ):
        languages = "--target-lang", "de", "--source-lang", "en"
        output = run("translate", directories["mbart50"], *languages, "--max-length", 9, *options, input="A dog.\n")
        assert output.strip()
        if "--glossary" in options:
            assert "Hund" in output
        if "--prefix" in options:
            assert output.startswith("the")
    with pytest.raises(InputError, match="--alignments are shown of our own models only, and this one is not"):
        run("translate", directories["nllb"], *languages, "--alignments", "words", "--json", input="A dog.\n")


def test_the_server_detects_a_source_that_is_not_named(directories):
    from deltalm_ds.serving.batching import Ticket
    from deltalm_ds.serving.limits import ApiKeys, Limits
    from deltalm_ds.serving.service import Asked, Service

    service = Service([f"m={directories['mbart']}"], Limits(beam=2), ApiKeys(None), {"threads": 1}, 10)
    try:
        texts = [TEXTS[1]]
        answers = [service.translate(Asked(texts, "fr", source), Ticket())[1][0].texts for source in (None, "en", "de")]
        assert answers[0] == answers[1] != answers[2]
        (model,) = service.models
        assert model.engine_name == "transformers"
    finally:
        service.close()


def test_our_own_bart_runs(tmp_path):
    """The export that `deltalm` did not run before, beside the model itself."""
    from deltalm_ds.checkpoints.directory import save_model
    from deltalm_ds.export.formats.bart import write_bart
    from deltalm_ds.model.config import DeltaLMConfig
    from deltalm_ds.model.deltalm import DeltaLM
    from deltalm_ds.vocabulary import Vocabulary

    foreign_toys.sentencepiece_model(tmp_path)
    vocabulary = Vocabulary.from_spm(tmp_path / "spm.model", num_sentinels=2, languages=["de", "en"])
    torch.manual_seed(0)
    tiny = DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=40))
    save_model(tmp_path / "model", tiny.config, tiny.state_dict(), vocabulary, {})
    vocabulary.save(tmp_path / "bart")
    write_bart(tiny, vocabulary, tmp_path / "bart", "float32")
    (tmp_path / "bart" / "deltalm.json").write_text('{"format": "bart"}')
    sources = [encoder_for(load_vocabulary(tmp_path / "bart"), "de")(text) for text in TEXTS]
    options = SearchOptions(beam=3, n_best=3, max_length=10)
    ours, exported = (generate(load_engine(tmp_path / name), sources, options) for name in ("model", "bart"))
    for a, b in zip(ours, exported, strict=True):
        assert [one.ids for one in a] == [one.ids for one in b]
        assert [one.score for one in a] == pytest.approx([one.score for one in b], abs=1e-4)
