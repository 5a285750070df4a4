"""How each export is loaded: Python programs for its model card, run by the tests as they stand there.

`{directory}` is the export, `{tag}` a language tag and a space, or nothing. Those of models without text use ids.
"""

CTRANSLATE2 = """\
import ctranslate2
import sentencepiece

translator = ctranslate2.Translator("{directory}")
pieces = sentencepiece.SentencePieceProcessor("{directory}/spm.model")
source = [*"{tag}".split(), *pieces.encode("A dog is running.", out_type=str), "</s>"]
(result,) = translator.translate_batch([source], beam_size=5, max_input_length=0, suppress_sequences=[["<pad>"]])
print(pieces.decode(result.hypotheses[0]))
"""

CTRANSLATE2_IDS = """\
import json

import ctranslate2

translator = ctranslate2.Translator("{directory}")
with open("{directory}/shared_vocabulary.json") as file:
    tokens = json.load(file)
source = [tokens[token_id] for token_id in (4, 5, 6, 2)]
(result,) = translator.translate_batch([source], beam_size=5, max_input_length=0, suppress_sequences=[[tokens[1]]])
print(*result.hypotheses[0])
"""

HUGGING_FACE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{directory}", trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained("{directory}", trust_remote_code=True)
batch = tokenizer(["{tag}A dog is running."], return_tensors="pt", padding=True)
print(*tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True), sep="\\n")
"""

HUGGING_FACE_IDS = """\
import torch
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained("{directory}", trust_remote_code=True)
print(model.generate(torch.tensor([[4, 5, 6, 2]])))
"""

BART = HUGGING_FACE.replace(", trust_remote_code=True", "")
BART_IDS = HUGGING_FACE_IDS.replace(", trust_remote_code=True", "")

DELTALM = """\
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import generate
from deltalm_ds.vocabulary import Vocabulary

engine, vocabulary = load_engine("{directory}"), Vocabulary.load("{directory}")
tags = [vocabulary.language_id(tag.strip("_")) for tag in "{tag}".split()]
((best,),) = generate(engine, [[*tags, *vocabulary.encode("A dog is running.")]], SearchOptions())
print(vocabulary.decode(best.ids))
"""

DELTALM_IDS = """\
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import generate

((best,),) = generate(load_engine("{directory}"), [[4, 5, 6]], SearchOptions())
print(*best.ids)
"""

FAIRSEQ = """\
from argparse import Namespace

import torch

with torch.serialization.safe_globals([Namespace]):
    checkpoint = torch.load("{directory}/finetuned.pt")
print(checkpoint["cfg"]["model"].arch, len(checkpoint["model"]), "tensors")
"""
