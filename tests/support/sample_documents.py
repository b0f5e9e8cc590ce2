"""Documents for tests: a PDF with one line of text a page, a DOCX with paragraphs, a PDF that unpacks to many megabytes."""

import io
import zipfile

from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

NAMESPACE = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def make_pdf(*lines: str, password: str | None = None, owner_password: str | None = None) -> bytes:
    """`password` is needed to open it. With `owner_password` alone anyone can open it, but it is encrypted."""
    writer = PdfWriter()
    for line in lines:
        add_page(writer, f"BT /F1 12 Tf 20 100 Td ({line}) Tj ET".encode())
    if password is not None or owner_password is not None:
        writer.encrypt(password or "", owner_password, algorithm="AES-256")
    with io.BytesIO() as file:
        writer.write(file)
        return file.getvalue()


def add_page(writer: PdfWriter, content: bytes) -> None:
    page = writer.add_blank_page(300, 200)
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font_object = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
    fonts = DictionaryObject({NameObject("/F1"): font_object})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = DecodedStreamObject()
    stream.set_data(content)
    page[NameObject("/Contents")] = writer._add_object(stream.flate_encode())


def make_docx(*paragraphs: str, prologue: str = "", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """`prologue`: text before the first element of the document."""
    runs = "".join(f'<w:p><w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>' for text in paragraphs)
    body = f'{prologue}<w:document xmlns:w="{NAMESPACE}"><w:body>{runs}</w:body></w:document>'
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("[Content_Types].xml", "<Types/>")
            archive.writestr("word/document.xml", body)
        return file.getvalue()


def make_pdf_bomb(megabytes: int) -> bytes:
    """A few kilobytes that unpack to `megabytes` on one page."""
    writer = PdfWriter()
    add_page(writer, b" " * (megabytes << 20))
    with io.BytesIO() as file:
        writer.write(file)
        return file.getvalue()
