"""The page of quality: failures, flags and pictures are on it, and nothing from a file becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from brainldm_core import dataset, quality_page
from brainldm_core.profiles import Grid
from brainldm_core.scans import Preparation

GRID = Grid(shape=(16, 20, 16), spacing_mm=10.0)
HOSTILE = 'a"><script>alert(1)</script><img src=x onerror=alert(1)>&copy;'


def table(count):
    """Quality of ``count`` scans; the third is flagged and hostile, the fit falls from first to last."""
    rows = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:03d}" for i in range(count)],
            "session_id": "ses-1",
            "source": [f"sub-{i:03d}_ses-1_T1w.nii.gz" for i in range(count)],
            "brain_only": True,
            "correlation": np.linspace(0.6, 0.5, count),
            "mutual_information": 0.5,
            "rotation_degrees": 3.25,
            "scale": 0.9,
            "white_level": 812.5,
            "brain_extraction": "off",
            "brain_ml": None,
            "bias_percent": None,
            "flagged": "",
        }
    )
    rows.loc[2, ["source", "flagged"]] = [HOSTILE, "turned by <80> degrees"]
    rows.loc[0, ["brain_extraction", "brain_ml", "bias_percent"]] = ["deepbet 1.0.2", 1402.4, 31.4]
    rows.loc[1, "brain_extraction"] = "brain only already"
    return rows


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Writes a page of ``count`` scans and some failures; returns its text."""
    monkeypatch.setattr(quality_page, "thumbnail", lambda volume, grid: b"\x89PNG picture")
    monkeypatch.setattr(quality_page, "read_scan", lambda folder, row: None)

    def write(count, failures=(), preparation=None):
        how = preparation or Preparation()
        quality_page.write_page(tmp_path, "people<b>", table(count), list(failures), GRID, how)
        return (tmp_path / "quality.html").read_text(encoding="utf-8")

    return write


class Reader(HTMLParser):
    """Collects elements, their attributes, and checks that they are nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_failures_flags_and_what_was_done_are_listed(page):
    text = page(4, [("sub-x", "ses-2", "sub-x.nii.gz: damaged"), ("sub-y", "n/a", "row without a T1w scan")])
    assert "<strong>4</strong> scans are used, <strong>1</strong> of them" in text
    assert "<strong>2</strong> are not used" in text
    assert re.search(r"sub-x_ses-2</th><td[^>]*>sub-x.nii.gz: damaged<", text)
    assert re.search(r"sub-y</th><td[^>]*>row without a T1w scan<", text)
    order = re.findall(r"<th scope=\"row\">(sub-\d+)_ses-1", text)
    assert order == ["sub-002", "sub-003", "sub-001", "sub-000"]  # flagged, then from the poorest fit
    assert text.count("class=look") == 1
    assert "brain of 1402 ml cut out by deepbet 1.0.2; bias field of 31 % taken off" in text
    assert "was brain only already: nothing cut" in text
    assert "UniRes" in text
    assert "<p>None.</p>" in page(4)


def test_the_method_on_the_page_is_the_one_of_the_options(page):
    text = page(4)
    assert "The bias field was left as it was." in text and "No brain was cut out." in text
    assert "white matter to 0.8" in text and "16 × 20 × 16 voxels of 10 mm" in text
    text = page(4, preparation=Preparation(True, True, "percentile"))
    assert "taken off by N4" in text and "The brain was cut out of whole heads." in text and "percentile 99.5" in text


def test_nothing_from_a_file_becomes_markup_and_no_other_host_is_asked(page):
    text = page(4, [(HOSTILE, "n/a", HOSTILE)])
    reader = Reader(text)
    assert reader.tags.count("img") == 4
    assert not {"script", "b", "link", "iframe", "a"} & set(reader.tags)
    assert not [name for _, name, _ in reader.attributes if name.startswith("on") or name == "href"]
    sources = [value for _, name, value in reader.attributes if name == "src"]
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert "http:" not in text and "https:" not in text
    assert "&amp;copy;" in text  # shown as it is written
    assert "turned by &lt;80&gt; degrees" in text
    assert "prefers-color-scheme: dark" in text


def test_thousands_of_scans_have_rows_and_forty_pictures(page):
    text = page(3000)
    assert text.count("<img ") == 40
    assert text.count('<th scope="row">sub-') == 3000
    assert text.index("<img ") < text.index("sub-2999") + 2000
    assert len(text) < 3e6


def test_a_thumbnail_shows_the_scan_and_the_outline():
    from io import BytesIO

    from matplotlib.image import imread

    from brainldm_core.quality import thumbnail

    volume = np.zeros(GRID.shape, np.float32)
    volume[:8] = 0.5  # the left half
    picture = imread(BytesIO(thumbnail(volume, GRID)))[..., :3]
    height, width = picture.shape[:2]
    assert width / height == pytest.approx((160 + 200 + 160) / 200, rel=0.05)
    axial = picture[:, : round(width * 160 / 520)]
    grey = np.abs(axial - 0.5).max(axis=-1) < 0.1
    columns = np.nonzero(grey.any(axis=0))[0]
    assert columns.min() < 5 and columns.max() == pytest.approx(axial.shape[1] / 2, abs=12)  # left on the left
    red = picture[..., 0] - picture[..., 1] > 0.25
    assert all(part.any() for part in np.array_split(red, 3, axis=1))


def test_the_first_pictures_are_those_of_the_worst(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(quality_page, "thumbnail", lambda volume, grid: b"")
    monkeypatch.setattr(quality_page, "read_scan", lambda folder, row: seen.append(row.participant_id))
    quality_page.write_page(tmp_path, "people", table(50), [], GRID, Preparation())
    assert len(seen) == quality_page.PICTURE_ROWS
    assert seen[:2] == ["sub-002", "sub-049"]
    assert dataset.scan_name(seen[0], "ses-1") in (tmp_path / "quality.html").read_text()
