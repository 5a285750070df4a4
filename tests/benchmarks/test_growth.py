"""Growth: one thing is multiplied and all else stays; slopes and figures say how measures follow."""

from xml.etree import ElementTree

import pytest

from benchmarks.quality import figures, growth
from benchmarks.quality.growth import Case
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.vocabulary import Vocabulary

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.5])
def test_a_power_law_has_its_exponent_as_slope(slope):
    assert growth._slope([(x, 7 * x**slope) for x in (1.0, 10.0, 300.0)]) == pytest.approx(slope)


@pytest.mark.parametrize(
    ("case", "num_corpora", "num_rows"),
    [(Case(vocabulary=500), 1, 120), (Case(vocabulary=500, corpus=10), 1, 1200), (Case(languages=5), 4, 120)],
)
def test_data_are_multiplied_along_one_axis(case, num_corpora, num_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "WORK", tmp_path)
    monkeypatch.setattr(growth, "NUM_PAIRS", 120)
    growth._build(case)
    vocabulary = Vocabulary.load(growth._data(case) / "vocabulary")
    dataset = ShardDataset.open(growth._data(case) / "shards", vocabulary.hash)
    assert len(vocabulary.languages) == case.languages
    assert len(dataset.corpora) == num_corpora and dataset.manifest.num_rows == num_rows
    dataset.check_content()


def test_every_axis_changes_one_thing():
    for axis, cases in growth.AXES.items():
        changed = {name for name in vars(Case()) for case in cases if getattr(case, name) != getattr(cases[0], name)}
        assert changed == {axis}


def test_a_figure_shows_every_point_in_order(tmp_path):
    path = tmp_path / "figure.svg"
    figures.log_log(path, "corpus", {"up": [(1, 2), (10, 20), (100, 2000)], "even": [(1, 5), (10, 5.1), (100, 5)]})
    panels = ElementTree.parse(path).getroot().findall(f"{SVG}g")
    for panel, is_even in zip(panels, (False, True), strict=True):
        points = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in panel.findall(f"{SVG}circle")]
        (x0, _), (x1, _), (x2, _) = points
        assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # powers of ten are evenly spaced
        heights = [y for _, y in points]
        if is_even:  # what hardly changes is drawn so
            assert max(heights) - min(heights) < 5
        else:
            assert heights[0] - heights[1] == pytest.approx((heights[1] - heights[2]) / 2, abs=0.2)
