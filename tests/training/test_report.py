"""The report: one page that holds all it shows, and says of each picture, curve and word what it is."""

import base64
import io
import re
import xml.etree.ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluate import Evaluation, evaluate
from training.pictures import embedded, picture_sheet, word_overlay
from training.report import Report, write_report
from training.tokenizer import train


class Page(HTMLParser):
    """Addresses, headings and the balance of tags."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open, self.headings, self._in_heading = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self._in_heading = tag in ("h1", "h2")

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._in_heading = False

    def handle_data(self, data):
        if self._in_heading:
            self.headings.append(data)


@pytest.fixture
def runs(tiny, pictures):
    folders = [train(recipe, tiny(recipe, recipe, steps=4)) for recipe in ("vqgan", "vqct")]
    for folder in folders:
        evaluate(Evaluation(run=folder, data=str(pictures), device="cpu", workers=0))
    return tuple(folders)


def test_a_sheet_has_every_pixel_in_its_place():
    rows = {name: torch.randint(256, (3, 3, 5, 7), dtype=torch.uint8) for name in ("originals", "vqgan")}
    sheet = torch.tensor(np.asarray(picture_sheet(rows, gap=2)))
    assert sheet.shape == (2 * 7 + 2, 3 * 9 + 2, 3)
    for row, pictures in enumerate(rows.values()):
        for column, picture in enumerate(pictures):
            top, left = 2 + 7 * row, 2 + 9 * column
            assert torch.equal(sheet[top : top + 5, left : left + 7], picture.permute(1, 2, 0))
    assert (sheet[::7] == 255).all() and (sheet[:, ::9] == 255).all() and (sheet[-2:] == 255).all()


def test_the_page_holds_everything(runs, tmp_path):
    text = write_report(Report(runs=runs, out=tmp_path / "pages" / "report.html", pictures=5)).read_text()
    assert Image.open(tmp_path / "pages" / "report.png").size == (5 * 20 + 4, 3 * 20 + 4)
    page = Page(text)
    assert not page.open
    assert page.headings == ["vqgan and vqct", "Numbers", "Originals and reconstructions", "Training", "Codes", "Words of vqct"]
    outside = [address for address in page.addresses if not address.startswith(("data:image/png;base64,", "#"))]
    assert not outside and "<script" not in text and "http://localhost" not in text
    table = text[text.index('<table class="pictures">'):text.index("</table>", text.index('<table class="pictures">'))]
    assert table.count("<img") == 15 and re.findall(r"<th>(\w+)</th>", table) == ["originals", "vqgan", "vqct"]
    assert "a soft picture number 4" in text
    originals = re.findall(r'src="data:image/png;base64,([^"]+)"', table)[:5]
    assert Image.open(io.BytesIO(base64.b64decode(originals[0]))).size == (16, 16) and len(set(originals)) == 5
    assert "adjectives, " in text and "nouns, " in text and "codebook 1, " in text
    assert re.search(r"<text[^>]*>adjective\d+</text>", text) and re.search(r"<text[^>]*>noun\d+</text>", text)


def test_a_run_without_metrics_is_said_to_be_so(tiny, tmp_path):
    folder = train("autoencoder", tiny("autoencoder", steps=3))
    text = write_report(Report(runs=(folder,), out=tmp_path / "report.html")).read_text()
    assert "Not evaluated yet: autoencoder" in text and "Words of" not in text and "<h2>Codes" not in text


def test_pictures_are_embedded_without_loss():
    picture = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    decoded = Image.open(io.BytesIO(base64.b64decode(embedded(picture).split(",")[1])))
    assert list(decoded.get_flattened_data() if hasattr(decoded, "get_flattened_data") else decoded.getdata()) == \
        [tuple(pixel) for pixel in picture.permute(1, 2, 0).reshape(-1, 3).tolist()]


def test_a_cell_has_the_words_selected_most_in_it():
    words = (["red", "<big>", "old"], ["sky", "dog"])
    indices = torch.zeros(4, 4, 3, dtype=torch.int64)
    indices[:2, 2:] = torch.tensor([1, 2, 1])
    indices[0, 2] = torch.tensor([0, 1, 0])
    drawing = xml.etree.ElementTree.fromstring(word_overlay(torch.zeros(3, 8, 8, dtype=torch.uint8), indices, words, (2, 1), cells=2))
    said = [element.text for element in drawing.iter("text")]
    assert said == ["red", "sky", "<big>", "dog", "red", "sky", "red", "sky"]
    assert len(list(drawing.iter("rect"))) == 4


def test_what_cannot_be_shown_is_named(tiny, pictures, tmp_path):
    with pytest.raises(ValueError, match="runs: expected at least one"):
        Report(runs=())
    folder = train("vqgan", tiny(steps=3))
    (folder / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match="has no model yet"):
        write_report(Report(runs=(folder,)))
    other = train("vqgan", tiny(folder="other", steps=3))
    pictures.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="are not there any more"):
        write_report(Report(runs=(other,)))
