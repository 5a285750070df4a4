"""The published corpora that `deltalm data convert` reads. A new one is a file of this folder and a row."""

from functools import partial

from deltalm_ds.data_tools.published import questions, sgm, webnlg, wikilingua, wmt_xml, xqg
from deltalm_ds.data_tools.published.published_corpus import PublishedCorpus

PUBLISHED = {
    "sgm": PublishedCorpus("SOURCE.sgm REFERENCE.sgm (WMT until 2020)", sgm.read, 2, 2),
    "wmt-xml": PublishedCorpus("FILE.xml (WMT from 2021)", wmt_xml.read),
    "webnlg": PublishedCorpus("FILES.xml or .jsonl, English", webnlg.read),
    "webnlg-ru": PublishedCorpus("FILES.xml or .jsonl, Russian", partial(webnlg.read, language="ru")),
    "wikilingua": PublishedCorpus("FILE [ENGLISH_FILE], .parquet or .jsonl", wikilingua.read, 1, 2),
    "qa": PublishedCorpus("FILES.json (like SQuAD), .parquet or .jsonl", questions.read),
    "xqg": PublishedCorpus("PASSAGES ANSWERS QUESTIONS (XNLG's e, a, q)", xqg.read, 3, 3),
}
