"""A report as its reader's parser sees it, and small sets of embeddings to report on."""

import io
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from allpairs.embeddings import EmbeddingSet
from retrieval_eval import evaluate

NASTY = "<script>alert('caption')</script><img src=x onerror=alert(1)>\u2028&"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with attributes, the text per enclosing section, the scripts, and whether every tag was closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], {}
        self.sections, self.scripts = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append(dict(attrs)["id"])
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
            return
        where = self.sections[-1] if self.sections else "top"
        self.text[where] = " ".join(f"{self.text.get(where, '')} {data}".split())

    def all(self, tag, **attributes):
        return [found for name, found in self.tags if name == tag and attributes.items() <= found.items()]

    def json(self, name):
        return next(json.loads(text) for attributes, text in self.scripts if attributes.get("id") == name)

    @property
    def policy(self):
        return self.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


def thumbnail(value):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value * 20 % 256, 90, 120)).save(buffer, "PNG")
    return buffer.getvalue()


def measured(embeddings):
    return evaluate(embeddings.images, embeddings.captions, embeddings.image_ids, embeddings.caption_ids)


def ring(angles, ids, texts, of, keys=None):
    """Images and captions on the unit circle, by their angles in degrees."""
    points = [np.stack([np.cos(np.radians(a)), np.sin(np.radians(a))], 1) for a in angles]
    return EmbeddingSet(*points, ids, of, keys or [f"image {i}" for i in ids], texts)
