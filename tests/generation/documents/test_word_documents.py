"""Word documents: what python-docx itself reads back is the translation, in the formats of the source."""

from io import BytesIO

import pytest
from echoed import translated

from deltalm_ds.errors import InputError

docx = pytest.importorskip("docx", reason="the extra documents is not installed")


@pytest.fixture
def document():
    document = docx.Document()
    document.add_heading("A heading", 1)
    paragraph = document.add_paragraph("First sentence with ")
    paragraph.add_run("bold words").bold = True
    paragraph.add_run(" in it. Second ")
    paragraph.add_run("one").italic = True
    paragraph.add_run(".")
    document.add_paragraph("123 — 456")
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "left cell", "right cell"
    broken = document.add_paragraph("above")
    broken.add_run().add_break()
    broken.add_run("below")
    document.sections[0].header.paragraphs[0].text = "the header"
    return document


def saved(document):
    file = BytesIO()
    document.save(file)
    return file.getvalue()


def runs(paragraph):
    return [(run.text, bool(run.bold), bool(run.italic)) for run in paragraph.runs]


def test_an_echo_reads_as_before(document):
    found, counts = translated("docx", saved(document))
    again = docx.Document(BytesIO(found))
    assert [p.text for p in again.paragraphs] == [p.text for p in document.paragraphs]
    assert [runs(p) for p in again.paragraphs[:3]] == [runs(p) for p in document.paragraphs[:3]]
    assert [p.style.name for p in again.paragraphs] == [p.style.name for p in document.paragraphs]
    assert counts.passages == 6 and counts.sentences == 7


def test_text_changes_and_formats_stay(document):
    def backwards(text):
        return " ".join(reversed(text.split(" ")))

    again = docx.Document(BytesIO(translated("docx", saved(document), backwards)[0]))
    assert again.paragraphs[0].text == "heading A" and again.paragraphs[0].style.name == "Heading 1"
    assert runs(again.paragraphs[1])[:2] == [("it. in ", False, False), ("words bold", True, False)]
    assert "123 — 456" in [p.text for p in again.paragraphs]
    assert [cell.text for cell in again.tables[0].rows[0].cells] == ["cell left", "cell right"]
    assert again.paragraphs[3].text == "below\nabove"
    assert again.sections[0].header.paragraphs[0].text == "header the"


def test_links_fields_and_pictures_stay(document):
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    paragraph = document.add_paragraph("See ")
    link = f'<w:hyperlink {nsdecls("w")} w:anchor="there"><w:r><w:t>this place</w:t></w:r></w:hyperlink>'
    field = [
        f'<w:r {nsdecls("w")}><w:fldChar w:fldCharType="begin"/></w:r>',
        f"<w:r {nsdecls('w')}><w:instrText>PAGE</w:instrText></w:r>",
        f'<w:r {nsdecls("w")}><w:fldChar w:fldCharType="separate"/></w:r>',
        f"<w:r {nsdecls('w')}><w:t>17</w:t></w:r>",
        f'<w:r {nsdecls("w")}><w:fldChar w:fldCharType="end"/></w:r>',
    ]
    paragraph._p.append(parse_xml(link))
    paragraph.add_run(" on page ")
    for run in field:
        paragraph._p.append(parse_xml(run))
    found, _ = translated("docx", saved(document), str.upper)
    last = docx.Document(BytesIO(found)).paragraphs[-1]
    assert last.text == "SEE THIS PLACE ON PAGE 17"
    assert [link.text for link in last.hyperlinks] == ["THIS PLACE"]
    assert "PAGE" in last._p.xml and last._p.xml.count("fldChar ") == 3


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04 broken"])
def test_what_is_no_word_document_is_refused(data):
    with pytest.raises(InputError, match="cannot be read as a Word document"):
        translated("docx", data)
