"""How a person's text crosses each syntax on its way to the payload, and back: pairs `encode_*`, `decode_*`.

A decoder is the exact inverse of its encoder and refuses what the encoder never writes. What a syntax cannot
carry raises `Unrepresentable`, which names the place and the value. NUL and lone surrogates are refused everywhere,
CR and LF everywhere but in values for the worker; every other character of Unicode, control characters included,
arrives as it was written.

HTCondor's rules are those that condor_submit and condor_schedd 25.14 follow, each proved on the real programs
by tests/pool/test_quoting_real.py; the table is docs/reference/quoting.md.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache

from fermigrid.errors import Unrepresentable

_FORBIDDEN = re.compile("[\0\r\n\ud800-\udfff]")
_NEVER = re.compile("[\0\ud800-\udfff]")
_TAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"(?:/[A-Za-z0-9._+@=-]+)+")
_KEY = re.compile(r"[a-z][a-z0-9_.]*")


def refuse_control(text: str, what: str, forbidden: re.Pattern[str] = _FORBIDDEN) -> str:
    """Give back a text without the characters that no syntax here carries; `what` names its place.

    NUL ends a C string, CR and LF end a line of a submit file, shard or job.env, lone surrogates no UTF-8.
    """
    if bad := forbidden.search(text):
        names = {"\0": "NUL", "\r": "a carriage return", "\n": "a newline"}
        name = names.get(bad[0], f"the lone surrogate U+{ord(bad[0]):04X}")
        raise Unrepresentable(what, text, f"it has {name} at character {bad.start() + 1}")
    return text


def tame(word: str, what: str) -> str:
    """Give back a word that no syntax changes: names of jobs and shards. At most 200 of `[A-Za-z0-9._-]`."""
    if not _TAME.fullmatch(word):
        why = "use 1 to 200 of the characters A-Z a-z 0-9 . _ - and begin with a letter or a digit"
        raise Unrepresentable(what, word, why)
    return word


# --- HTCondor: arguments and environment ("new" or V2 syntax) ----------------------------------------------

_BLANKS = " \t\n\v\f\r"
_V2_BARE = re.compile(rf"[^{_BLANKS}'$]+")
_V2_WORD = re.compile(rf"(?:[^{_BLANKS}']++|'(?:[^']|'')*+')++")
_V2_PIECE = re.compile(r"'((?:[^']|'')*+)'|([^']++)")
_DOLLARS = re.compile(r"(\$+)")
_MATCH_MACRO = re.compile(r"\$\$+(?=\()")
_LITERAL_DOLLARS = "$$(DOLLARDOLLAR)"
# condor_submit reads dollars in pairs, so only the last of an odd run can begin a macro.
_SUBMIT_MACRO = re.compile(r"(?<!\$)((?:\$\$)*)\$(?=[A-Za-z0-9_]*\()")


def _hide_match_macros(text: str) -> str:
    """The schedd evaluates `$$(` in every attribute when a job starts; `$$(DOLLARDOLLAR)` gives `$$` then."""
    return _MATCH_MACRO.sub(lambda run: _LITERAL_DOLLARS * (len(run[0]) // 2) + "$" * (len(run[0]) % 2), text)


def _encode_word(text: str) -> str:
    """One V2 word. Dollars stand outside the quotes and what follows inside, so that no `$name(` is left.

    The documented `$(DOLLAR)` fails next to another: `$(DOLLAR)$(DOLLAR)(x)` becomes `$$(DOLLAR)(x)`, and
    `$(DOLLAR)(DOLLAR)` becomes `$`.
    """
    if _V2_BARE.fullmatch(text):
        return text
    pieces = [piece for piece in _DOLLARS.split(_hide_match_macros(text)) if piece]
    quoted = (piece if piece[0] == "$" else "'" + piece.replace("'", "''") + "'" for piece in pieces)
    return "".join(quoted) or "''"


def _join_words(words: Sequence[str]) -> str:
    return '"' + " ".join(map(_encode_word, words)).replace('"', '""') + '"'


def _split_words(text: str, what: str) -> tuple[str, ...]:
    if not re.fullmatch(r'"(?:[^"]|"")*+"', text):
        raise Unrepresentable(what, text, 'it is not in double quotes, with each one inside doubled ("")')
    if _SUBMIT_MACRO.search(text):
        raise Unrepresentable(what, text, "it has a macro of the submit language in it")
    raw = text[1:-1].replace('""', '"')
    words, end = [], 0
    for word in _V2_WORD.finditer(raw):
        if raw[end : word.start()].strip(_BLANKS):
            break
        words.append(_V2_PIECE.sub(lambda piece: piece[2] or piece[1].replace("''", "'"), word[0]))
        end = word.end()
    if raw[end:].strip(_BLANKS):
        raise Unrepresentable(what, text, "a single quote is not closed")
    return tuple(word.replace(_LITERAL_DOLLARS, "$$") for word in words)


def encode_arguments(args: Sequence[str]) -> str:
    """Write the text to put after `arguments = ` in a submit file; the payload's argv is exactly `args`.

    Source: condor_submit manual, "arguments", new syntax.
    """
    for number, arg in enumerate(args, 1):
        refuse_control(arg, f"argument {number}")
    return _join_words(args)


def decode_arguments(text: str) -> tuple[str, ...]:
    """Read what `encode_arguments` wrote."""
    return _split_words(text, "arguments")


def encode_environment(variables: Mapping[str, str]) -> str:
    """Write the text to put after `environment = ` in a submit file, in the order of the names."""
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            why = "use letters, digits and _ and begin with no digit"
            raise Unrepresentable("name of an environment variable", name, why)
        refuse_control(value, f"environment variable {name}")
    return _join_words([f"{name}={variables[name]}" for name in sorted(variables)])


def decode_environment(text: str) -> dict[str, str]:
    """Read what `encode_environment` wrote."""
    variables: dict[str, str] = {}
    for word in _split_words(text, "environment"):
        name, equals, value = word.partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or name in variables:
            raise Unrepresentable("environment", word, "it is not NAME=value, each name once")
        variables[name] = value
    return variables


# --- HTCondor: values of a submit file and ClassAd strings -------------------------------------------------


def _refuse_macros(text: str, what: str) -> None:
    """Refuse what condor_submit or the schedd expands in spite of everything, in a value without V2 words."""
    if "$$(" in text:
        raise Unrepresentable(what, text, "HTCondor replaces $$(...) in it when a job starts")
    if re.search(r"\$\(DOLLAR\)", text, re.IGNORECASE):
        raise Unrepresentable(what, text, "condor_submit would make $ of the $(DOLLAR) in it")


def _encode_macros(text: str) -> str:
    return _SUBMIT_MACRO.sub(r"\1$(DOLLAR)", text)


def _decode_macros(text: str, what: str) -> str:
    plain = text.replace("$(DOLLAR)", "$")
    _refuse_macros(plain, what)
    if _encode_macros(plain) != text:
        raise Unrepresentable(what, text, "it has a macro of the submit language in it")
    return plain


def encode_submit_value(text: str, what: str = "value of a submit command") -> str:
    """Write a plain value: the text after `batch_name = `, `submit_event_notes = `, `description = `.

    Not for paths (condor_submit drops backslashes in some) nor for lists. Refused, because condor_submit does
    not give them back: no text at all, blanks at the ends, a backslash at the end, double quotes at both ends
    (some commands strip them), `$$(` and `$(DOLLAR)`.
    """
    refuse_control(text, what)
    if not text or text.strip(_BLANKS) != text:
        raise Unrepresentable(what, text, "it is empty, or begins or ends with a blank, which HTCondor drops")
    if text.endswith("\\"):
        raise Unrepresentable(what, text, "it ends with a backslash, which joins the next line to it")
    if text.startswith('"') and text.endswith('"'):
        raise Unrepresentable(what, text, "it is in double quotes, which HTCondor drops")
    _refuse_macros(text, what)
    return _encode_macros(text)


def decode_submit_value(text: str) -> str:
    """Read what `encode_submit_value` wrote."""
    return _decode_macros(text, "value of a submit command")


def encode_submit_string(text: str, what: str = "string of a submit file") -> str:
    r"""Write a ClassAd string of a submit file: the right side of `+Attr = `, or a string in an expression.

    Submit files (and a schedd's constraints) are read by the *old* ClassAd rules: only `\"` is an escape, a
    backslash is itself, `"\\"` is two and `"\303"` four characters: classad2.quote will not do. A backslash
    at the end is refused: `\"` would be taken for a quote. Macros as in `encode_submit_value`.
    """
    refuse_control(text, what)
    if text.endswith("\\"):
        raise Unrepresentable(what, text, "it ends with a backslash, which would take away the closing quote")
    _refuse_macros(text, what)
    return '"' + _encode_macros(text.replace('"', '\\"')) + '"'


def encode_path(text: str, what: str = "path") -> str:
    """Write an absolute path in a list of paths (`transfer_input_files`), or alone (`x509userproxy`).

    HTCondor splits such lists at commas, drops blanks at the ends and some backslashes, expands macros, takes `a:` for
    a URL and, of a path with a slash at its end, the content of the folder: all others are refused.
    """
    if not _PATH.fullmatch(text) or text.endswith("/") or {".", ".."} & {*text.split("/")}:
        raise Unrepresentable(what, text, "use an absolute path of letters, digits and / . _ + @ = -")
    return text


def decode_path(text: str) -> str:
    """Read what `encode_path` wrote."""
    return encode_path(text)


def encode_submit_expression(text: str, what: str = "expression of a submit file") -> str:
    """Write a ClassAd expression: the right side of `+Attr = `. Macros as in `encode_submit_value`."""
    refuse_control(text, what)
    if not text.strip() or text.endswith("\\"):
        raise Unrepresentable(what, text, "it is empty, or ends with a backslash, which joins the next line to it")
    _refuse_macros(text, what)
    return _encode_macros(text)


def decode_submit_expression(text: str) -> str:
    """Read what `encode_submit_expression` wrote."""
    return _decode_macros(text, "expression of a submit file")


def decode_submit_string(text: str) -> str:
    """Read what `encode_submit_string` wrote."""
    what = "string of a submit file"
    literal = _decode_macros(text, what)
    if not re.fullmatch(r'"(?:[^"]|(?<=\\)")*(?<!\\)"', literal):
        raise Unrepresentable(what, text, 'it is not in double quotes, with each one inside as \\"')
    return literal[1:-1].replace('\\"', '"')


def encode_classad_string(text: str, what: str = "ClassAd string") -> str:
    r"""Write a ClassAd string by the *new* rules (`\"`, `\\`): classad2.ExprTree, not submit files."""
    refuse_control(text, what)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def decode_classad_string(text: str) -> str:
    """Read what `encode_classad_string` wrote."""
    if not re.fullmatch(r'"(?:[^"\\]|\\["\\])*+"', text):
        raise Unrepresentable("ClassAd string", text, 'it is not in double quotes, with \\" and \\\\ inside')
    return re.sub(r'\\(["\\])', r"\1", text[1:-1])


# --- shell -------------------------------------------------------------------------------------------------


def encode_shell_word(text: str, what: str = "word of a shell command") -> str:
    """Write one word for a POSIX shell."""
    return shlex.quote(refuse_control(text, what))


def decode_shell_word(text: str) -> str:
    """Read what `encode_shell_word` wrote."""
    what = "word of a shell command"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Unrepresentable(what, text, "a quote is not closed") from error
    if len(words) != 1:
        raise Unrepresentable(what, text, f"it is {len(words)} words")
    return words[0]


# --- the rows of a shard and the lines of job.env, for the worker ------------------------------------------

_FIELD_UNESCAPE = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
_FIELD_ESCAPES = str.maketrans({char: escape for escape, char in _FIELD_UNESCAPE.items()})


def encode_field(text: str, what: str = "value for the worker") -> str:
    """Write a value of a row or of job.env; bash's `printf -v x '%b' "$field"` is the inverse."""
    return refuse_control(text, what, _NEVER).translate(_FIELD_ESCAPES)


def decode_field(text: str, what: str = "value for the worker") -> str:
    """Read what `encode_field` wrote."""
    if not re.fullmatch(r"(?:[^\\\t]|\\[\\tnr])*+", refuse_control(text, what)):
        raise Unrepresentable(what, text, "it has a tab, or a backslash that is not of \\\\, \\t, \\n or \\r")
    return re.sub(r"\\.", lambda escape: _FIELD_UNESCAPE[escape[0]], text)


@lru_cache(maxsize=1024)
def _check_keys(keys: tuple[str, ...]) -> None:
    for key in keys:
        if not _KEY.fullmatch(key):
            raise Unrepresentable("key for the worker", key, "use a-z 0-9 _ . and begin with a letter")


def _encode_pairs(fields: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{key}={encode_field(value, key)}" for key, value in fields]


def encode_row(fields: Sequence[tuple[str, str]]) -> str:
    """Write a job's row of a shard: `key=value` joined by TAB, in the order given, without the newline.

    Called for every job of a campaign: where no value needs an escape, which is nearly always, no Python code
    runs for each field.
    """
    if not fields:
        return ""
    keys, values = zip(*fields, strict=True)
    _check_keys(keys)
    everything = "".join(values)
    if everything.isprintable() and "\\" not in everything:
        return "\t".join(map("=".join, fields))
    return "\t".join(_encode_pairs(fields))


def decode_row(line: str) -> tuple[tuple[str, str], ...]:
    """Read what `encode_row` wrote."""
    return _decode_pairs(line.split("\t")) if line else ()


def encode_lines(fields: Sequence[tuple[str, str]]) -> str:
    """Write job.env: `key=value`, each on a line of its own, in the order given."""
    _check_keys(tuple(key for key, _ in fields))
    return "".join(f"{pair}\n" for pair in _encode_pairs(fields))


def decode_lines(text: str) -> tuple[tuple[str, str], ...]:
    """Read what `encode_lines` wrote."""
    if text and not text.endswith("\n"):
        raise Unrepresentable("job.env", text[-80:], "its last line is not complete")
    return _decode_pairs(text.split("\n")[:-1])


def _decode_pairs(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    fields = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise Unrepresentable("field for the worker", pair, "it is not key=value")
        fields.append((key, decode_field(value, key)))
    _check_keys(tuple(key for key, _ in fields))
    return tuple(fields)
