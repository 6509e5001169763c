"""Reads the HTML of a page as a person sees it: headings, texts, fields and buttons."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page, parsed. `fields` are the names of the controls with their tags, by label."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[str] = []
        self.title = self.heading = self.style = ""
        self.texts: list[str] = []
        self.buttons: dict[str, str] = {}
        self.fields: dict[str, dict[str, str | None]] = {}
        self.options: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._button: str | None = None
        self._labels: dict[str, str] = {}
        self._label = self._select = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._open.append(tag)
        if tag == "button":
            self._button = given.get("value")
        elif tag == "label":
            self._label = given.get("for") or ""
            self._labels[self._label] = ""
        elif tag in ("input", "select", "textarea"):
            name = given.get("name") or ""
            self.fields[name] = {"tag": tag, "label": self._labels.get(given.get("id") or "", ""), **given}
            self._select = name
            self.options[name] = []

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "title":
            self.title += data
        elif inside == "style":
            self.style += data
        elif data.strip():
            self.texts.append(data.strip())
            if inside == "h1":
                self.heading += data
            elif inside == "button" and self._button is not None:
                self.buttons[data] = self._button
            elif inside == "label":
                self._labels[self._label] += data.strip()
            elif inside == "option":
                self.options[self._select].append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def name_of(self, label: str) -> str:
        """The name of the field with a label."""
        (found,) = [name for name, given in self.fields.items() if given["label"] == label]
        return found
