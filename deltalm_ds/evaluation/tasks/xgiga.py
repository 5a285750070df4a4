"""XGiga-Fr: a news article's first sentences -> its headline, in French."""

from deltalm_ds.evaluation.tasks.interface import ROUGE, Form, Part, Table, Task
from deltalm_ds.evaluation.tasks.readers import ORANGESUM, fields, text_pairs

FR = ("fr", "fr")

TASK = Task(
    "xgiga",
    "article -> headline, French",
    (
        Form(
            "published",
            "XNLG's XGiga: articles in files x, headlines in files y",
            tuple(
                Part(split, FR, (f"{split}.x.fr", f"{split}.y.fr"), text_pairs) for split in ("train", "dev", "test")
            ),
            (Table("XGiga-Fr", ("fr-fr",), ROUGE, {"DeltaLM (published)": (58.39, 42.02, 54.94)}),),
        ),
        Form(
            "sample",
            "titles of OrangeSum",
            tuple(
                Part(split, FR, (f"orangesum_fr_title.{file}.jsonl",), fields("text", "summary"))
                for split, file in ORANGESUM.items()
            ),
            (Table("Titles of French news, sample data (not the paper's)", ("fr-fr",), ROUGE),),
        ),
    ),
)
