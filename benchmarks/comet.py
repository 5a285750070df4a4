"""COMET and COMETKiwi on this machine beside unbabel-comet, with random weights in XLM-R base's size.

    python -m benchmarks.comet --peer ENVIRONMENT/bin/python   python of an environment with unbabel-comet

Texts are WMT17's outputs in ../shared/data/evalref: a system's are scored with another's in the sources' place, which
are as long. Loading is not counted. The tokenizer is trained on these texts, so the token table is smaller than
XLM-R's; this changes little, as it is only looked up. Processor seconds say more than seconds where other programs run.
"""

import json
import lzma
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.recording import ROOT, parser, report, row_of_process
from deltalm_ds.data_tools.train_vocabulary import train
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References

DATA = ROOT.parent / "shared" / "data" / "evalref"
TEXTS = {"src": "online-B.0", "mt": "online-A.0", "ref": "ref"}
SETTINGS: dict[str, dict[str, Any]] = {
    "comet": {"class_identifier": "regression_metric", "layer": "mix", "pool": "avg", "validation_data": []},
    "cometkiwi": {"class_identifier": "unified_metric", "sent_layer": "mix", "input_segments": ["mt", "src"]},
}
WIDTHS = {"comet": 6, "cometkiwi": 1}
PEER = """
import json, sys, time
from comet import load_from_checkpoint
path, texts = sys.argv[1], json.load(sys.stdin)
model = load_from_checkpoint(path, local_files_only=True)
samples = [dict(zip(texts, row)) for row in zip(*texts.values())]
start, used = time.perf_counter(), time.process_time()
scores = model.predict(samples, batch_size=16, gpus=0, progress_bar=False, num_workers=0)["scores"]
seconds, processor = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"seconds": seconds, "processor": processor, "scores": scores}))
"""


def main() -> None:
    """Both metrics by both programs, ours first and last."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(_ours(*sys.argv[2:])))
        return
    options = parser(__doc__)
    options.add_argument("--peer", required=True, help="python of an environment with unbabel-comet")
    options.add_argument("--segments", type=int, default=32, help="how many are scored")
    arguments = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        texts = _write_texts(directory, arguments.segments)
        _write_tokenizer(directory)
        for metric in SETTINGS:
            _write_checkpoint(directory, metric)
            worker = ["-m", "benchmarks.comet", "--worker", metric, name]
            first, peer, last = row_of_process(worker), _peer(arguments.peer, directory, texts), row_of_process(worker)
            for what, found in (("ours", first), ("unbabel-comet 2.2.7", peer), ("ours, again", last)):
                differences = [abs(a - b) for a, b in zip(found["scores"], peer["scores"], strict=True)]
                rows.append(
                    {
                        "metric": metric,
                        "what": what,
                        "seconds": found["seconds"],
                        "segments/s": arguments.segments / found["seconds"],
                        "processor seconds": found["processor"],
                        "of unbabel-comet": peer["processor"] / found["processor"],
                        "largest difference": f"{max(differences):.1e}",
                    }
                )
    report(
        arguments,
        f"COMET in XLM-R base's size, random weights: {arguments.segments} segments, {torch.get_num_threads()} threads",
        f"python -m benchmarks.comet --peer … --segments {arguments.segments}",
        rows,
    )


def _write_texts(directory: Path, num: int) -> dict[str, list[str]]:
    """The last lines of the files of texts, by their role; the files too."""
    texts = {}
    for role, name in TEXTS.items():
        lines = lzma.decompress((DATA / f"wmt17.en-de.{name}.xz").read_bytes()).decode().splitlines()
        (directory / role).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        texts[role] = lines[-num:]
    (directory / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    return texts


def _write_tokenizer(directory: Path) -> None:
    train([directory / role for role in TEXTS], directory / "vocabulary", 8_000, num_sentinels=0)
    (directory / "vocabulary" / "spm.model").rename(directory / "sentencepiece.bpe.model")


def _write_checkpoint(directory: Path, metric: str) -> None:
    """Of this metric, in the published layout, in place of what is there."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    rows = len(json.loads((directory / "vocabulary" / "vocabulary.json").read_text())["blocks"][1]["tokens"]) + 5
    torch.manual_seed(0)
    config = XLMRobertaConfig(vocab_size=rows, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    config.save_pretrained(directory)
    state = {f"encoder.model.{n}": x for n, x in XLMRobertaModel(config, add_pooling_layer=False).state_dict().items()}
    width = config.hidden_size
    sizes = [WIDTHS[metric] * width, 3072, 1024, 1]
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = torch.nn.Linear(inputs, outputs)
        state |= {f"estimator.ff.{3 * number}.{name}": x.detach() for name, x in layer.named_parameters()}
    state |= {f"layerwise_attention.scalar_parameters.{i}": torch.zeros(1) for i in range(config.num_hidden_layers + 1)}
    state["layerwise_attention.gamma"] = torch.ones(1)
    settings = SETTINGS[metric] | {"pretrained_model": str(directory), "layer_transformation": "softmax"}
    settings |= {"layer_norm": False, "hidden_sizes": sizes[1:-1], "activations": "Tanh"}
    (directory / "hparams.yaml").write_text(yaml.safe_dump(settings))
    (directory / "checkpoints").mkdir(exist_ok=True)
    del settings["class_identifier"]
    content = {"state_dict": state, "hyper_parameters": settings, "pytorch-lightning_version": "2.0.0"}
    torch.save(content, directory / "checkpoints" / "model.ckpt")


def _ours(metric: str, directory: str) -> dict[str, Any]:
    os.environ |= {"COMET_MODEL": directory, "COMETKIWI_MODEL": directory}
    texts = json.loads((Path(directory) / "texts.json").read_text())
    references = References(texts["ref"], sources=texts["src"])
    one = References(["a"], sources=["a"])
    METRICS[metric].scorer(one).score(["a"])  # loads
    scorer = METRICS[metric].scorer(references)
    start, used = time.perf_counter(), time.process_time()
    found = scorer.score(texts["mt"])
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    assert found.statistics is not None
    return {"seconds": seconds, "processor": processor, "scores": (found.statistics.rows[:, 0] / 100).tolist()}


def _peer(python: str, directory: Path, texts: dict[str, list[str]]) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", PEER, str(directory / "checkpoints" / "model.ckpt")]
    process = subprocess.run(command, input=json.dumps(texts), env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
