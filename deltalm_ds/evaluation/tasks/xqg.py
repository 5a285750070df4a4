"""XQG-Zh: an answer and its passage -> the question, in Chinese. The template is `answer [S] passage`."""

from deltalm_ds.data_tools.published import questions, xqg
from deltalm_ds.evaluation.tasks.interface import Form, Part, Table, Task

ZH = ("zh", "zh")
METRICS = ("bleu", "meteor", "rougel")
SPLITS = ("train", "dev", "test")

TASK = Task(
    "xqg",
    "answer [S] passage -> question, Chinese",
    (
        Form(
            "published",
            "XNLG's XQG, tokenised lower-case text in files e, a, q",
            tuple(Part(split, ZH, tuple(f"{split}.{side}.zh.lc" for side in "eaq"), xqg.read) for split in SPLITS),
            (Table("XQG-Zh", ("zh-zh",), METRICS, {"DeltaLM (published)": (25.80, 24.87, 52.05)}),),
        ),
        Form(
            "sample",
            "DRCD and CMRC 2018 (training on their dev sets), XQuAD for validation",
            (
                Part("train", ZH, ("zhqa/drcd_dev.jsonl", "zhqa/cmrc2018_dev.jsonl"), questions.read),
                Part("dev", ZH, ("xquad/zh.jsonl",), questions.read),
                Part("test", ZH, ("zhqa/drcd_test.jsonl", "zhqa/cmrc2018_trial.jsonl"), questions.read),
            ),
            (Table("Question generation, Chinese, sample data (not the paper's)", ("zh-zh",), METRICS),),
        ),
    ),
    task_tokens=("[S]",),
)
