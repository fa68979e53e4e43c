"""Sphinx extension: the comment beside each parameter becomes a row of a table under the docstring."""
import inspect
import re
import typing

from fastcore.docments import docments

EMPTY = inspect.Parameter.empty
SPECIAL = re.compile(r'([\\*_|`<>\[\]])')


def prose(text:str) -> str:
    "Plain text with `code` as reStructuredText: code is kept, every other special character is escaped."
    pieces = re.split(r'(`[^`]+`)', text)
    out = ''
    for p in pieces:
        if re.fullmatch(r'`[^`]+`', p): out += f'`{p}`' if not out or not out[-1].isalnum() else f'\\ `{p}`'
        else: out += ('\\ ' if out.endswith('``') and p[:1].isalnum() else '') + SPECIAL.sub(r'\\\1', p)
    return out


def type_name(annotation) -> str:
    "An annotation as one writes it."
    if annotation in (EMPTY, None): return ''
    if isinstance(annotation, str): return annotation
    if typing.get_origin(annotation) is None and inspect.isclass(annotation): return annotation.__name__
    text = str(annotation).replace('typing.', '').replace('collections.abc.', '')
    return re.sub(r'\b(?:\w+\.)+(\w+)', r'\1', text).replace(' | ', '|')


def default_text(value) -> str:
    "A default as one writes it."
    if value is EMPTY: return ''
    text = repr(value)
    return text if ' object at 0x' not in text and ' at 0x' not in text else type(value).__name__


def table(obj) -> list[str]:
    "The parameters of `obj` as a list-table: name, type, default, meaning; [] where nothing is commented."
    try: rows = docments(obj, full=True)
    except (TypeError, ValueError, OSError): return []
    out = []
    for name, d in rows.items():
        if name in ('self', 'cls') or not d.get('docment') and name == 'return': continue
        value = default_text(d.get('default', EMPTY)) if name != 'return' else ''
        kind = type_name(d.get('anno'))
        cells = [f'**{name}**' if name == 'return' else f'``{name}``', f'``{kind}``' if kind else '',
                 f'``{value}``' if value else '',
                 prose(d.get('docment') or '')]
        out += [f'   * - {cells[0]}'] + [f'     - {c}'.rstrip() for c in cells[1:]]
    if not out: return []
    return ['', '.. list-table::', '   :header-rows: 1', '   :class: docments', '', '   * - name', '     - type',
            '     - default',
            '     - meaning', *out, '']


def process(app, what, name, obj, options, lines):
    "Replace a docstring by its escaped text and the table of its parameters."
    text = [prose(line) for line in lines]
    if what == 'module': text = [re.sub(r'(?<!\w)\\\*(\w[^*\\]*)\\\*(?!\w)', r'*\1*', line) for line in text[:1]]
    lines[:] = text + (table(obj) if what in ('function', 'class', 'method') else [])


def setup(app):
    app.connect('autodoc-process-docstring', process)
    return {'parallel_read_safe': True}
